// Clicks through examples/groupchat as people would: the main story, the refusals, by keyboard, on a phone, in the dark.
//
//   BASE=http://127.0.0.1:8080 SHORT=http://127.0.0.1:8081 SHOTS=output node groupchat.mjs
//
// BASE is a fresh groupchat with its built-in apps, SHORT one with testdata/short.json. Pictures go to SHOTS; groupchat.png is the README's.
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const { BASE, SHORT, SHOTS, CHROMIUM = "/usr/bin/chromium" } = process.env;
assert(BASE && SHORT && SHOTS, "BASE, SHORT and SHOTS are required");

const browser = await chromium.launch({
	executablePath: CHROMIUM,
	args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const pages = [];
let passed = 0;

async function step(name, f) {
	const began = Date.now();
	try {
		await f();
	} catch (err) {
		console.log(`FAIL ${name}\n${err.stack}`);
		for (const [i, page] of pages.entries()) await page.screenshot({ path: `${SHOTS}/fail-${i}.png` }).catch(() => {});
		await browser.close();
		process.exit(1);
	}
	passed++;
	console.log(`ok ${name} (${Date.now() - began} ms)`);
}

// A page that must stay without errors: a broken content security policy shows here, too.
async function open(options = {}) {
	const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, locale: "en-GB", timezoneId: "Asia/Shanghai", ...options });
	context.setDefaultTimeout(15_000);
	const page = await context.newPage();
	page.faults = [];
	page.on("pageerror", (err) => page.faults.push(err.message));
	page.on("console", (m) => { if (m.type() === "error" && !page.mayFail?.test(m.text())) page.faults.push(m.text()); });
	pages.push(page);
	return page;
}

async function signIn(page, name, base = BASE) {
	await page.goto(base);
	await page.getByRole("button", { name }).click();
	await page.getByRole("log", { name: "Messages" }).waitFor();
}

const box = (page) => page.getByRole("textbox");
const log = (page) => page.getByRole("log", { name: "Messages" });
const story = (page) => page.locator(".story").first();

async function say(page, text) {
	await box(page).fill(text);
	await box(page).press("Enter");
	await log(page).getByText(text, { exact: true }).last().waitFor();
}

// Waits until the story on top reads as the pattern says.
async function storyReads(page, pattern) {
	await story(page).filter({ hasText: pattern }).waitFor();
}

// Every text that is seen stands off its ground by 4.5:1, large text by 3:1 (WCAG 2.2, 1.4.3).
async function contrast(page) {
	const bad = await page.evaluate(() => {
		const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return { rgb: m.slice(0, 3), a: m[3] ?? 1 }; };
		const light = ([r, g, b]) => [r, g, b].map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
		const over = (top, under) => top.rgb.map((v, i) => v * top.a + under[i] * (1 - top.a));
		const ground = (el) => {
			const layers = [];
			for (let e = el; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
			return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
		};
		const out = [];
		let seen = 0;
		const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		while (walker.nextNode()) {
			const text = walker.currentNode.textContent.trim(), el = walker.currentNode.parentElement;
			if (!text || !el.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || el.closest(".hidden, noscript, script, .skip, .fresh")) continue;
			seen++;
			const style = getComputedStyle(el), under = ground(el), size = parseFloat(style.fontSize);
			const a = light(over(parse(style.color), under)), b = light(under);
			const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
			if (ratio < (size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700 ? 3 : 4.5)) out.push(`${ratio.toFixed(2)} "${text.slice(0, 40)}" <${el.className || el.tagName}>`);
		}
		return seen < 5 ? ["nothing was looked at"] : out;
	});
	assert.deepEqual(bad, [], "contrast");
}

// Everything that can be operated has a name, and no id is there twice.
async function named(page) {
	const bad = await page.evaluate(() => [
		...[...document.querySelectorAll("button, a, input:not([type=hidden]), textarea, summary")].filter((e) =>
			!(e.textContent.trim() || e.getAttribute("aria-label") || (e.labels && e.labels.length))).map((e) => "without a name: " + e.outerHTML),
		...[...document.querySelectorAll("[id]")].map((e) => e.id).filter((id, i, all) => all.indexOf(id) !== i).map((id) => "twice: #" + id),
	]);
	assert.deepEqual(bad, [], "names");
}

const noOverflow = async (page) => assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth), false, "nothing is wider than the screen");

const zhang = await open({ deviceScaleFactor: 1.25 }); // of whom the README has a picture
const li = await open();

await step("sign in with the keyboard", async () => {
	await zhang.goto(BASE);
	await contrast(zhang);
	await zhang.screenshot({ path: `${SHOTS}/login.png` });
	await zhang.keyboard.press("Tab");
	assert.equal(await zhang.evaluate(() => document.activeElement.textContent.trim().endsWith("Zhang San")), true);
	await zhang.keyboard.press("Enter");
	await log(zhang).waitFor();
	await zhang.keyboard.press("Tab");
	assert.equal(await zhang.evaluate(() => document.activeElement.textContent), "Skip to the message box");
	await zhang.keyboard.press("Enter");
	assert.equal(await zhang.evaluate(() => document.activeElement.id), "say");
	const cookie = (await zhang.context().cookies())[0];
	assert(cookie.httpOnly && cookie.sameSite === "Lax");
	await named(zhang);
});

await step("a message that names nobody gives nothing", async () => {
	await signIn(li, "Li Si");
	await say(li, "Typhoon weather outside, too.");
	await log(zhang).getByText("Typhoon weather outside, too.").waitFor(); // live
	await li.getByText("no trigger matches, nothing is issued").waitFor();
	assert.equal(await li.locator(".story").count(), 0);
});

await step("an app that polls, and a link through the browser", async () => {
	await say(zhang, "/tea 16:00");
	await log(zhang).getByText("I am putting the kettle on").waitFor();
	await storyReads(zhang, /fetched by the app/);
	await storyReads(zhang, /used up/);
	await log(li).getByRole("button", { name: "I am coming" }).click();
	await li.getByRole("heading", { name: "TeaTime" }).waitFor();
	assert(!li.url().includes("code="), "the code leaves the address bar");
	assert.equal(new URL(li.url()).hostname, "localhost", "another host name, so that the chat's cookie does not come along");
	await contrast(li);
	await li.screenshot({ path: `${SHOTS}/teatime.png` });
	await li.getByRole("link", { name: "Back to the chat" }).click();
	await log(li).getByText("I am coming to tea. That makes 2 of 4.").waitFor();
	await storyReads(li, /in the link, through your browser/);
	await storyReads(li, /used up/);
});

await step("a mention: the app answers in the user's name, and everybody sees by which app", async () => {
	await say(zhang, "@bookbot a novel with a storm in it");
	await storyReads(zhang, /may act/);
	await log(zhang).getByText("This one, perhaps?").waitFor();
	await storyReads(zhang, /2\s*of 5 uses left/);
	for (const page of [zhang, li]) {
		const messages = page.locator(".message.by-app", { hasText: "via BookBot" });
		assert.equal(await messages.count(), 3);
		for (const m of await messages.all()) {
			assert.match(await m.locator(".who").innerText(), /^Zhang San\s+via BookBot/);
		}
	}
	const text = await story(zhang).innerText();
	for (const word of ["Operation", "mention", "Trigger", "bookbot-mention", "Grant", "message.write", "group:42", "5 uses in 2 min", "Delivery", "signed webhook, taken at try 1", "Redemption", "code for token", "Use", "×3", "End"]) {
		assert(text.includes(word), `${word} in ${text}`);
	}
	assert.equal(await li.locator(".story").count(), 1, "another's grants are nobody's business");
});

await step("the clock runs", async () => {
	const clock = story(zhang).locator("[data-clock]");
	const before = await clock.innerText();
	assert.match(before, /^[01]:[0-5]\d left$/);
	await zhang.waitForFunction((was) => document.querySelector(".story [data-clock]").textContent !== was, before);
});

await step("a button acts for who presses it", async () => {
	await log(li).getByRole("button", { name: "Reserve" }).click();
	await log(li).getByText("I have reserved").waitFor();
	assert.match(await li.locator(".message").last().locator(".who").innerText(), /^Li Si\s+via BookBot/);
	await storyReads(li, /button\.press/);
	await storyReads(li, /2\s*of 3 uses left/);
	assert.equal(await zhang.locator(".story").count(), 2);
});

await step("the picture for the README", async () => {
	await storyReads(zhang, /2\s*of 5 uses left/);
	await zhang.waitForTimeout(600); // what arrives fades in
	await zhang.evaluate(() => document.activeElement.blur());
	await zhang.screenshot({ path: `${SHOTS}/groupchat.png` });
	await contrast(zhang);
	await named(zhang);
});

await step("weak evidence asks first", async () => {
	await say(zhang, "When is the next book club?");
	await storyReads(zhang, /asks you/);
	await zhang.screenshot({ path: `${SHOTS}/asks.png` });
	await contrast(zhang);
	await story(zhang).getByRole("button", { name: "Allow" }).focus();
	await zhang.keyboard.press("Enter");
	await log(zhang).getByText("on Thursday at seven").waitFor();
	await storyReads(zhang, /used up/);
});

await step("without a grant there is no way in", async () => {
	const before = await zhang.locator(".message").count();
	await zhang.getByRole("button", { name: "Act without a grant" }).click();
	await zhang.getByRole("heading", { name: "Refused, each time" }).waitFor();
	assert.deepEqual(await zhang.locator(".tries li > b").allInnerTexts(), ["401", "401", "401"]);
	assert.equal(await zhang.locator(".message").count(), before);
	await contrast(zhang);
	await zhang.screenshot({ path: `${SHOTS}/refused.png` });
});

await step("revoke while the app is at work", async () => {
	const cards = await zhang.locator(".card").count();
	await say(zhang, "@bookbot a family and its garden");
	await log(zhang).getByText("searched for “a family and its garden”").waitFor();
	await story(zhang).getByRole("button", { name: "Revoke" }).focus();
	await zhang.keyboard.press("Enter");
	await storyReads(zhang, /Refused\s*revoked/);
	assert.match(await story(zhang).locator(".state").innerText(), /revoked/);
	assert.match(await zhang.getByRole("status").innerText(), /BookBot: revoked/);
	assert.equal(await zhang.locator(".card").count(), cards, "the work was cut off");
	await contrast(zhang);
	await zhang.screenshot({ path: `${SHOTS}/revoked.png` });
});

await step("who leaves takes the app's power along", async () => {
	await say(li, "@bookbot a whale");
	await log(li).getByText("searched for “a whale”").waitFor();
	await li.locator(".people summary").click();
	await contrast(li);
	li.mayFail = /403/; // the group's page, for who is not in the group
	await li.getByRole("button", { name: "Leave the group" }).click();
	await li.getByText("You are not a member of this group").waitFor();
	await storyReads(li, /Refused\s*rights_changed/);
	assert.match(await story(li).locator(".state").innerText(), /out of power/);
	await li.screenshot({ path: `${SHOTS}/left.png` });
	await contrast(li);
	await li.getByRole("button", { name: "Join Reading circle" }).click();
	await log(li).waitFor();
	li.mayFail = null;
});

await step("what is asked in a thread stays in the thread", async () => {
	await zhang.getByRole("link", { name: "Books for the winter" }).click();
	await zhang.getByRole("heading", { name: "Books for the winter", level: 1 }).waitFor();
	await say(zhang, "@bookbot something thick");
	await log(zhang).getByText("This one, perhaps?").waitFor();
	await storyReads(zhang, /group:42\/thread:t1/);
	await zhang.getByRole("link", { name: "Reading circle" }).first().click();
	await zhang.getByRole("heading", { name: "Reading circle", level: 1 }).waitFor();
	assert.equal(await log(zhang).getByText("something thick").count(), 0);
});

await step("what people write is text", async () => {
	const text = `<img src=x onerror="alert(1)"> & "quotes" </script>`;
	await say(zhang, text);
	await zhang.reload();
	await log(zhang).getByText(text, { exact: true }).waitFor();
	await box(zhang).fill("x".repeat(4000));
	await box(zhang).press("Shift+Enter");
	assert.equal((await box(zhang).inputValue()).length, 4000, "no more than the server takes");
});

await step("a token's time runs out before one's eyes", async () => {
	const page = await open();
	await signIn(page, "Zhang San", SHORT);
	await say(page, "@probe hello");
	await storyReads(page, /code waits/);
	const client = "Basic " + Buffer.from("probe:probe-secret").toString("base64");
	const { grants } = await (await fetch(SHORT + "/oauth2/grants?wait=5s", { headers: { Authorization: client } })).json();
	const redeemed = await fetch(SHORT + "/oauth2/token", {
		method: "POST", headers: { Authorization: client },
		body: new URLSearchParams({ grant_type: "urn:behest:grant-type:operation", code: grants[0].code }),
	});
	const { access_token } = await redeemed.json();
	await storyReads(page, /may act/);
	await storyReads(page, /expired/);
	const late = await fetch(SHORT + "/api/groups/42/messages", {
		method: "POST", headers: { Authorization: "Bearer " + access_token, "Content-Type": "application/json" }, body: `{"text":"too late"}`,
	});
	assert.equal(late.status, 401);
	assert.equal((await late.json()).error_reason, "expired");
	await storyReads(page, /Refused\s*expired/);
	assert.deepEqual(page.faults, []);
	await page.context().close();
});

await step("on a phone, in the dark", async () => {
	const page = await open({ viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: "dark" });
	await page.goto(BASE);
	await contrast(page);
	await page.getByRole("button", { name: "Zhao Liu" }).tap();
	await log(page).waitFor();
	await say(page, "@bookbot ghosts, please");
	await log(page).getByText("searched for “ghosts, please”").waitFor();
	await page.waitForTimeout(600);
	await page.screenshot({ path: `${SHOTS}/phone-chat.png` });
	await noOverflow(page);
	await contrast(page);
	await page.getByRole("button", { name: "Underneath" }).tap();
	await storyReads(page, /may act/);
	await page.screenshot({ path: `${SHOTS}/phone-under.png` });
	await noOverflow(page);
	await contrast(page);
	await page.getByRole("button", { name: "Groups" }).tap();
	await page.screenshot({ path: `${SHOTS}/phone-groups.png` });
	await noOverflow(page);
	await contrast(page);
	await page.getByRole("link", { name: "Allotment" }).tap();
	await page.getByRole("heading", { name: "Allotment", level: 1 }).waitFor();
});

await step("in the dark, on a desk", async () => {
	const page = await open({ colorScheme: "dark" });
	await signIn(page, "Wang Wu");
	await say(page, "@bookbot a short diary");
	await log(page).getByText("This one, perhaps?").last().waitFor();
	await page.waitForTimeout(600);
	await page.screenshot({ path: `${SHOTS}/dark.png` });
	await contrast(page);
	const narrow = await open({ viewport: { width: 900, height: 700 } });
	await signIn(narrow, "Wang Wu");
	await narrow.screenshot({ path: `${SHOTS}/narrow.png` });
	await noOverflow(narrow);
});

await step("without a script", async () => {
	const page = await open({ javaScriptEnabled: false, viewport: { width: 390, height: 844 } });
	await page.goto(BASE);
	await page.getByRole("button", { name: "Wang Wu" }).click();
	await page.getByRole("textbox").fill("Said without a script.");
	await page.getByRole("button", { name: "Send" }).click();
	await page.getByText("Said without a script.").waitFor();
	await page.screenshot({ path: `${SHOTS}/noscript.png`, fullPage: true });
});

await step("sign out", async () => {
	await zhang.getByRole("button", { name: "Sign out" }).click();
	await zhang.getByText("Who are you today?").waitFor();
	assert.deepEqual(await zhang.context().cookies(), []);
});

await step("no page has complained", async () => {
	for (const page of pages) assert.deepEqual(page.faults, []);
});

await browser.close();
console.log(`${passed} passed, 0 failed`);
