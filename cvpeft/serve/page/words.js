"use strict";

// Everything that the page itself says, in both languages. What the service refuses it says in English, with its code.

const WORDS = {
  en: {
    tag: "en",
    other: "中文",
    choose: "Choose a photo",
    drop: "Drop a photo here",
    click: "or click to choose one, or paste it",
    photo: "The photo with what was found in it",
    busy: "Looking…",
    score: "Score:",
    reset: "Reset",
    own: "Each class's own threshold again",
    ownScore: "the model's own",
    above: (score) => `${score} and above`,
    classes: (names) => `${names.length} classes: ${names.join(", ")}`,
    limits: ({ megabytes, megapixels }) => `JPEG, PNG, WebP or BMP, up to ${megabytes} MB and ${megapixels} megapixels`,
    found: (shown) => `${shown} found.`,
    weaker: (n) => ` ${n} with a lower score ${n === 1 ? "is" : "are"} hidden; move the slider to see.`,
    noneHere: "Nothing found at this score.",
    none: "Nothing found: the model sees none of its classes here.",
    silent: "The service does not answer. Is `cvpeft serve` still running?",
    status: (status) => `The service answered with status ${status}.`,
    unshown: "The service has read this photo, but this browser cannot show it. Convert it to JPEG or PNG.",
  },
  zh: {
    tag: "zh-CN",
    other: "English",
    choose: "选择照片",
    drop: "把照片拖到这里",
    click: "或点击选择，或粘贴",
    photo: "照片及其中检测到的目标",
    busy: "检测中…",
    score: "置信度：",
    reset: "重置",
    own: "恢复每个类别自己的阈值",
    ownScore: "模型自带的阈值",
    above: (score) => `${score} 及以上`,
    classes: (names) => `${names.length} 个类别：${names.join("、")}`,
    limits: ({ megabytes, megapixels }) => `JPEG、PNG、WebP 或 BMP，不超过 ${megabytes} MB 和 ${megapixels} 百万像素`,
    found: (shown) => `检测到 ${shown} 个。`,
    weaker: (n) => `另有 ${n} 个置信度较低，已隐藏；拖动滑块即可查看。`,
    noneHere: "此置信度下没有检测到目标。",
    none: "没有检测到目标：模型在此照片中没有看到它的任何类别。",
    silent: "服务没有响应。`cvpeft serve` 还在运行吗？",
    status: (status) => `服务返回了状态码 ${status}。`,
    unshown: "服务已读取这张照片，但此浏览器无法显示。请转换为 JPEG 或 PNG。",
  },
};

// The first language of the browser that the page speaks.
const preferred = () => navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in WORDS) ?? "en";

// What was chosen by the switch is kept where the browser allows it.
function chosen(language) {
  try {
    if (language) localStorage.setItem("language", language);
    return localStorage.getItem("language");
  } catch {
    return language ?? null;
  }
}
