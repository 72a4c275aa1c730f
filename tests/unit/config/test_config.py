"""Settings: precedence, the names made from the tree, and what a bad value is answered with."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from loramux_server.config import Address, Settings, load
from loramux_server.config.flags import parse, show
from loramux_server.config.tree import leaves
from loramux_server.core.errors import Code, Error
from loramux_server.core.settings import StepSize


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("LORAMUX_"):
            monkeypatch.delenv(name)


def command_line(*argv: str):
    return parse(argv, prog="loramux serve", description="")


def test_defaults_listen_on_loopback_only() -> None:
    settings = load({}).settings
    assert settings.listen == Address("127.0.0.1", 50051)
    assert settings.metrics_listen == Address("127.0.0.1", 9464)
    assert settings.training.share == 0.3
    assert settings.model is None


def test_state_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load({}).settings.state_dir == tmp_path / "loramux"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load({}).settings.state_dir == tmp_path / ".local/state/loramux"
    assert load({"state_dir": "~/x"}).settings.state_dir == tmp_path / "x"


def test_the_size_of_a_step_follows_the_device_unless_it_is_given() -> None:
    usual, few = Settings().engine(), Settings(max_running=3).engine()
    assert usual.step_size("cpu") == StepSize(512, 64)
    assert usual.step_size("cuda") == StepSize(2048, 256)
    assert few.step_size("cuda") == StepSize(2048, 3)
    lines = {line.split()[0]: line for line in show(command_line()).splitlines()}
    assert "(256 on a GPU, 64 on a processor)  " in lines["max_running"]
    assert "(the engine chooses)  " in lines["kv_cache_memory"]
    assert lines["tls.cert"].split()[1] == "-"


def test_flag_over_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "loramux.toml"
    file.write_text("max_running = 1\nmax_queue = 1\nmax_batch_tokens = 1\n[training]\nshare = 0.1\nslice_ms = 1\n")
    monkeypatch.setenv("LORAMUX_MAX_RUNNING", "2")
    monkeypatch.setenv("LORAMUX_MAX_QUEUE", "2")
    monkeypatch.setenv("LORAMUX_TRAINING__SHARE", "0.2")
    loaded = command_line(
        "--config", str(file), "--max-running", "3", "--training-share", "0.5", "--training-activation-memory", "0"
    )
    settings = loaded.settings
    assert (settings.max_running, settings.max_queue, settings.max_batch_tokens) == (3, 2, 1)
    assert (settings.training.share, settings.training.slice_ms) == (0.5, 1)
    assert settings.engine().training_activation_memory == 0
    assert settings.default_max_tokens == 128
    sources = [loaded.sources[n] for n in ("max_running", "max_queue", "max_batch_tokens", "default_max_tokens")]
    assert sources == ["flag --max-running", "environment LORAMUX_MAX_QUEUE", f"file {file}", "default"]


def test_config_file_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('listen = "0.0.0.0:1"\nkv_cache_memory = "1GiB"\n')
    monkeypatch.setenv("LORAMUX_CONFIG", str(file))
    settings = command_line().settings
    assert settings.listen == Address("0.0.0.0", 1)
    assert settings.kv_cache_memory == 1 << 30


@pytest.mark.parametrize(("text", "size"), [("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("4096", 4096)])
def test_sizes(text: str, size: int) -> None:
    found = command_line("--kv-cache-memory", text).settings.engine().kv_cache_memory
    assert found == size
    assert type(found) is int


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--listen", "nowhere", "HOST:PORT"),
        ("--listen", "127.0.0.1:70000", "HOST:PORT"),
        ("--listen", "::1:5", "brackets"),
        ("--max-running", "0", "at least 1"),
        ("--max-running", "many", "whole number"),
        ("--training-share", "1.5", "at most 1"),
        ("--training-share", "nan", "number"),
        ("--device", "tpu", "'cpu'"),
        ("--dtype", "int4", "'bfloat16'"),
        ("--kv-cache-memory", "lots", "512MiB"),
        ("--kv-cache-memory", "0", "above 0"),
        ("--drain-timeout", "-1", "at least 0"),
        ("--drain-timeout", "inf", "number"),
        ("--state-dir", "", "empty"),
        ("--model", "", "empty"),
        ("--log-level", "loud", "'debug'"),
    ],
)
def test_a_bad_flag_is_named(flag: str, value: str, words: str) -> None:
    with pytest.raises(Error) as caught:
        command_line(f"{flag}={value}")
    error = caught.value
    assert error.code is Code.INVALID_ARGUMENT
    assert [v.field for v in error.violations] == [flag]
    assert words in error.message
    assert "\n" not in error.message


def test_bad_values_elsewhere_name_where_they_came_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAMUX_MAX_QUEUE", "-4")
    with pytest.raises(Error, match="from environment LORAMUX_MAX_QUEUE"):
        load({})
    monkeypatch.delenv("LORAMUX_MAX_QUEUE")
    file = tmp_path / "x.toml"
    file.write_text("max_queue = -4\n")
    with pytest.raises(Error, match=f"--max-queue.*from file {file}"):
        load({}, str(file))


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Error, match="--max-runing"):
        command_line("--max-runing", "3")
    file = tmp_path / "x.toml"
    file.write_text("[training]\nshrae = 1\n")
    with pytest.raises(Error, match=r"training\.shrae"):
        load({}, str(file))
    monkeypatch.setenv("LORAMUX_MAX_RUNING", "3")
    assert load({}).unknown_variables == ("LORAMUX_MAX_RUNING",)


def test_the_clients_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMUX_ADDRESS", "elsewhere:1")
    monkeypatch.setenv("LORAMUX_API_KEY", "k")
    assert load({}).unknown_variables == ()


@pytest.mark.parametrize("text", ["not toml", b"a = 1\xfe"])
def test_a_broken_file_is_one_line(text: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Error, match="--config"):
        load({}, str(file))
    with pytest.raises(Error, match="cannot read"):
        load({}, str(tmp_path / "absent.toml"))


def test_both_doors_on_one_port_are_refused_but_any_port_is_fine() -> None:
    with pytest.raises(Error, match="--metrics-listen"):
        load({"listen": "127.0.0.1:9464"})
    load({"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"})


def test_show_masks_secrets_and_names_every_setting() -> None:
    loaded = load({"database_url": "postgresql://me:hunter2@db/x", "metrics_listen": "off"})
    text = show(loaded)
    assert "hunter2" not in text
    assert loaded.settings.database_url is not None
    assert loaded.settings.database_url.get_secret_value().endswith("hunter2@db/x")
    document = json.loads(show(loaded, as_json=True))
    assert set(document) == {leaf.name for leaf in leaves()}
    assert "hunter2" not in json.dumps(document)
    assert document["database_url"]["source"] == "flag --database-url"


def test_every_setting_has_a_flag_a_variable_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for leaf in leaves():
        assert leaf.flag in text
        assert leaf.info.description
        assert leaf.variable.startswith("LORAMUX_")
    for default in ("256MiB", "16KiB", "127.0.0.1:8000", "default: on", "default: 30]"):
        assert default in text, "defaults are told as they would be given"


def test_field_c_every_wrong_line_of_a_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('lissten = "x"\nmax_running = "many"\n[training]\nshare = 7\nsahre = 1\n[nothing]\nhere = 1\n')
    with pytest.raises(Error) as caught:
        load({}, str(file))
    assert {violation.field for violation in caught.value.violations} == {
        *("lissten", "training.sahre", "nothing.here"),
        *("--max-running", "--training-share"),
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_field_c_a_file_may_begin_with_a_mark(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes('max_running = 3\r\nmodel = "ü"\r\n'.encode(encoding))
    settings = load({}, str(file)).settings
    assert (settings.max_running, settings.model) == (3, "ü")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "--config"),
        (".".join(["a"] * 5000) + " = 1", "--config"),
        ('state_dir = "a\\u0000b"', "--state-dir"),
        (f'listen = "a:{"9" * 5000}"', "--listen"),
    ],
)
def test_field_c_a_file_of_odd_values_is_refused(tmp_path: Path, text: str, field: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(Error) as caught:
        load({}, str(file))
    assert [violation.field for violation in caught.value.violations] == [field]


def test_lists_are_flags_given_again_words_of_a_variable_or_lists_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = "https://a.example", "http://localhost:5173"
    wanted = (one, two)
    flags = ["--http-cors-origin", one, "--http-cors-origin", two]
    assert parse(flags, prog="loramux", description="").settings.http_cors_origin == wanted
    (file := tmp_path / "c.toml").write_text(f'http_cors_origin = ["{one}", "{two}"]')
    assert load({}, str(file)).settings.http_cors_origin == wanted
    monkeypatch.setenv("LORAMUX_HTTP_CORS_ORIGIN", f"{one}, {two}")
    loaded = load({})
    assert loaded.settings.http_cors_origin == wanted
    assert f"{one}, {two}" in show(loaded)


@pytest.mark.parametrize("origin", ["*", "null", "https://a.example/", "a.example", "https://*.example", "https://a b"])
def test_origins_are_exact(origin: str) -> None:
    with pytest.raises(Error, match="--http-cors-origin: must be the exact origin"):
        load({"http_cors_origin": [origin]})


def test_metrics_over_http_need_their_token(tmp_path: Path) -> None:
    with pytest.raises(Error, match="--metrics-token: must be given too"):
        load({"http_metrics": "true"})
    assert load({"http_metrics": "true", "metrics_token": str(tmp_path / "token")}).settings.http_metrics


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().max_running = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"replicas": "2"}, "--replicas: must be 1 with --backend embedded"),
        ({"autoscale": "1..3"}, "--autoscale: needs --backend ray"),
        ({"ray_address": "auto"}, "--ray-address: needs --backend ray"),
        ({"replica_dir": "/x", "blobs_url": "s3://b/f"}, "--replica-dir: needs --backend ray"),
        ({"backend": "ray", "replica_dir": "/x"}, "--blobs-url: must be given too: replicas with --replica-dir"),
        ({"backend": "ray", "replicas": "2", "autoscale": "1..3"}, "--replicas: must not be given beside --autoscale"),
        ({"backend": "ray", "autoscale": "3..1"}, "must be MIN..MAX with 1 <= MIN <= MAX"),
        ({"backend": "ray", "autoscale": "0..1"}, "must be MIN..MAX with 1 <= MIN <= MAX"),
        ({"backend": "ray", "autoscale": "3"}, "must be MIN..MAX"),
    ],
)
def test_replicas_need_ray_and_one_way_to_count_them(given: dict[str, str], told: str) -> None:
    with pytest.raises(Error, match=re.escape(told)):
        load(given)


def test_the_range_of_replicas() -> None:
    assert load({}).settings.replica_range == (1, 1)
    assert load({"backend": "ray", "replicas": "3"}).settings.replica_range == (3, 3)
    assert load({"backend": "ray", "autoscale": "1..4"}).settings.replica_range == (1, 4)
