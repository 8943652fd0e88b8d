"use strict";
// Adds to a page that works without it: keys, the time since the picture is seen, and the next picture ahead of time.

const form = document.querySelector("form");
const buttons = [...form.querySelectorAll("button")];
let seen = performance.now();
let sent = false;

function preload() {
  if (form.dataset.next) {
    new Image().src = form.dataset.next;
  }
}

// Where no picture comes, time counts from when the page was read.
document.querySelector("img").decode().then(() => {
  seen = performance.now();
  preload();
}, () => {});

for (const button of buttons) {
  button.setAttribute("aria-keyshortcuts", button.dataset.key);
  button.querySelector("kbd").hidden = false;
}

document.addEventListener("keydown", (event) => {
  const button = buttons.find((each) => each.dataset.key === event.key);
  // A key that is held down, or goes with another, as in Alt and left for "back", is no answer.
  if (button && !event.repeat && !event.altKey && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit(button);
  }
});

form.addEventListener("submit", (event) => {
  if (sent) {
    event.preventDefault();
  }
  sent = true;
  form.elements.seconds.value = (performance.now() - seen) / 1000;
});

// A page that the browser kept from before shows a picture that has its answer.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) {
    location.reload();
  }
});
