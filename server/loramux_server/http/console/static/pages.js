// The pages in the order of the navigation. `scope` is what a key needs for it; "" is nothing.

export const pages = [
  { path: "chat", title: "Chat", element: "lm-chat", scope: "infer", load: () => import("./chat/page.js") },
  { path: "adapters", title: "Adapters", element: "lm-adapters", scope: "adapters:read", load: () => import("./adapters/page.js") },
  { path: "training", title: "Training", element: "lm-training", scope: "train", load: () => import("./training/page.js") },
  { path: "live", title: "Live", element: "lm-live", scope: "", load: () => import("./live/page.js") },
];
