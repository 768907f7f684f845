/** The account page: shows a new API token once, and then in the list. */

document.getElementById("token-form").addEventListener("api:done", (event) => {
  const box = document.getElementById("new-token");
  box.querySelector("code").textContent = event.detail.token;
  box.querySelector("[data-copy]").dataset.copy = event.detail.token;
  box.hidden = false;
  event.target.reset();
  box.scrollIntoView({ block: "nearest" });
  htmx.trigger("#tokens", "refresh");
});
