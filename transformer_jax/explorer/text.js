// The text: a button for each token, shaded by its weight for the tokens in focus.

const tokenButtons = {}; // side: its buttons

function makeTexts() {
  for (const [side, tokens] of Object.entries(data.sides)) {
    const title = element("h3", { id: `side-${side}` }, side === "text" ? "" : side);
    const group = element("div", { className: "tokens", role: "group", "aria-label": `Tokens of the ${side}` });
    tokenButtons[side] = tokens.map((_, token) => tokenButton(side, token));
    tokenButtons[side].forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
    group.append(...tokenButtons[side]);
    roving(group, () => tokenButtons[side], nearestRow);
    group.addEventListener("pointerleave", () => update({ preview: null }));
    group.addEventListener("focusout", () => update({ preview: null }));
    byId("texts").append(...(side === "text" ? [group] : [title, group]));
  }
}

function tokenButton(side, token) {
  const button = element("button", { type: "button" }, element("span", {}, tokenAt(side, token)), element("small"));
  const preview = () => update({ preview: { side, token } });
  button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") preview(); });
  button.addEventListener("focus", preview);
  button.addEventListener("click", (event) => {
    let tokens = [token];
    const isChosen = state.side === side && state.tokens.includes(token);
    if (event.shiftKey && state.side === side) {
      tokens = isChosen ? state.tokens.filter((other) => other !== token) : [...state.tokens, token];
    } else if (isChosen && state.tokens.length === 1) tokens = [];
    update({ side, tokens, preview: null });
  });
  return button;
}

function drawTexts() {
  const found = focusedWeights();
  const { side, tokens } = focused();
  for (const [name, buttons] of Object.entries(tokenButtons)) {
    const values = found && found.side === name ? found.values : null;
    buttons.forEach((button, i) => {
      const isChosen = String(state.side === name && state.tokens.includes(i));
      if (button.getAttribute("aria-pressed") !== isChosen) button.setAttribute("aria-pressed", isChosen);
      button.classList.toggle("focus", side === name && tokens.includes(i));
      const words = values && values[i] >= 0.005 ? number(values[i], 2).replace(/^0/, "") : "";
      const look = `${values ? rootOf(values[i]) : ""} ${words}`;
      if (button.dataset.look === look) return; // most of a long text stay as they are
      button.dataset.look = look;
      if (values) shade(button, values[i]);
      else button.removeAttribute("style");
      button.lastChild.textContent = words;
    });
  }
}

follow("kind layer head show direction side tokens preview", drawTexts);
