// The pages in the order of the navigation. `scope` is what a key needs for it; "" is nothing.

export const pages = [
  { path: "chat", title: "Chat", element: "lm-chat", scope: "infer", load: () => import("./chat/page.js") },
  { path: "live", title: "Live", element: "lm-live", scope: "", load: () => import("./live/page.js") },
];
