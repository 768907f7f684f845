/** The list of datasets: opens the dialog for a new one when the address asks for it. */

document.querySelector("dialog[data-open-now]")?.showModal();
