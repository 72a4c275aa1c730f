/* Preloaded into a process: the n-th operation that changes something under a folder fails, once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefix[4096];
static long fail_at = 0, seen = 0;
static int number = 0;

void fault_arm(const char *folder, long n, int error) {
    strncpy(prefix, folder, sizeof prefix - 1);
    fail_at = n; number = error; seen = 0;
}
long fault_disarm(void) { long count = seen; prefix[0] = 0; return count; }

static int due(const char *path) {
    if (!prefix[0] || strncmp(path, prefix, strlen(prefix)) != 0) return 0;
    if (++seen != fail_at) return 0;
    errno = number;
    return 1;
}
static int due_fd(int fd, const char *name) {
    char link[64], path[4096];
    if (!prefix[0]) return 0;
    if (name && name[0] == '/') return due(name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return due(path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        REAL(name); return WRITES(flags) && due(path) ? -1 : real(path, flags, mode); }
#define FD(type, name, args, call) type name args { REAL(name); return due_fd(fd, 0) ? -1 : real call; }
#define PATH(name, args, call) int name args { REAL(name); return due(path) ? -1 : real call; }

OPEN(open)
OPEN(open64)
FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
FD(int, fsync, (int fd), (fd))
FD(int, fdatasync, (int fd), (fd))
FD(int, ftruncate, (int fd, off_t size), (fd, size))
FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
PATH(rename, (const char *path, const char *to), (path, to))
PATH(mkdir, (const char *path, mode_t mode), (path, mode))
PATH(rmdir, (const char *path), (path))
PATH(unlink, (const char *path), (path))
int unlinkat(int fd, const char *name, int flags) { REAL(unlinkat); return due_fd(fd, name) ? -1 : real(fd, name, flags); }
