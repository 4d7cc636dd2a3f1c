// Drives examples/groupchat with clients that know nothing of behest: openid-client, oauth4webapi, jose and standardwebhooks from the npm registry.
//
//   GROUPCHAT=./groupchat node clients.mjs
//
// GROUPCHAT is the built program. Each step is a promise of the wire; the first that is not kept ends the run with status 1.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import * as jose from "jose";
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

const { GROUPCHAT } = process.env;
assert(GROUPCHAT, "GROUPCHAT is required");

const operation = "urn:behest:grant-type:operation";
const secret = "s3cr:t +%&-"; // every character that form-encoding, Basic or both could get wrong
const insecure = { [oauth.allowInsecureRequests]: true }; // http, on this machine
const dir = await mkdtemp(join(tmpdir(), "behest-clients-"));

// --- the receiver of pushes, the server, and people

const pushes = [];
let pushed = () => {};
const receiver = createServer((req, res) => {
	let body = "";
	req.setEncoding("utf8").on("data", (s) => (body += s)).on("end", () => {
		pushes.push({ headers: req.headers, body });
		res.writeHead(204).end();
		pushed();
	});
}).listen(0, "127.0.0.1");
await once(receiver, "listening");

// An app for each algorithm by which one may authenticate with a key.
const algorithms = ["EdDSA", "ES256", "RS256"];
const keys = {};
for (const alg of algorithms) keys[alg] = await jose.generateKeyPair(alg, { extractable: true });
const audience = "https://files.example";
const redirect = "http://127.0.0.1/callback";

const apps = {
	jwt_audience: audience,
	apps: [
		{ id: "probe", name: "Probe", secret, actions: ["message.write", "member.read"] },
		{ id: "hook", name: "Hook", secret: "hook-secret", actions: ["message.write"], webhook: `http://127.0.0.1:${receiver.address().port}/hook` },
		{ id: "other", name: "Other", secret: "other-secret", actions: ["message.write"] },
		{ id: "rs", name: "A resource server", secret: "rs-secret", introspect: true },
		{ id: "bound", name: "Bound", secret: "bound-secret", actions: ["message.write"], dpop_bound_access_tokens: true },
		{ id: "site", name: "Site", secret: "site-secret", redirect_uris: [redirect] },
		{ id: "phone", name: "Phone", token_endpoint_auth_method: "none", redirect_uris: [redirect] },
		{ id: "reader", name: "Reader", secret: "reader-secret", actions: ["member.read"], real_names: true },
		...(await Promise.all(algorithms.map(async (alg) => ({ id: alg.toLowerCase(), name: alg, actions: ["message.write"], jwks: { keys: [await jose.exportJWK(keys[alg].publicKey)] } })))),
	],
	triggers: [
		{ id: "probe-mention", app: "probe", on: "mention", in: "group:*", allow: ["message.write"], for: "10m", uses: 3, redeem_within: "60s", deliver: "poll", delegates: ["other"] },
		{ id: "reader-mention", app: "reader", on: "mention", in: "group:*", allow: ["member.read"], for: "2m", uses: -1, stateless: true, deliver: "poll" },
		...algorithms.map((alg) => ({ app: alg.toLowerCase(), on: "mention", in: "group:*", allow: ["message.write"], for: "1m", uses: 1, deliver: "poll" })),
		{ id: "bound-mention", app: "bound", on: "mention", in: "group:*", allow: ["message.write"], for: "2m", uses: 3, deliver: "poll" },
		{ id: "hook-mention", app: "hook", on: "mention", in: "group:*", allow: ["message.write"], for: "10m", uses: 1, redeem_within: "60s", deliver: "push" },
	],
};
await writeFile(join(dir, "apps.json"), JSON.stringify(apps));
const groupchat = spawn(GROUPCHAT, ["-addr", "127.0.0.1:0", "-store", "memory", "-apps", join(dir, "apps.json"), "-info", join(dir, "info.json")], { stdio: ["ignore", "pipe", "inherit"] });
const [ready] = await once(createInterface(groupchat.stdout), "line");
const base = ready.replace(/^listening on /, "");
const info = JSON.parse(await readFile(join(dir, "info.json"), "utf8"));

const cookies = {};
async function signIn(user) {
	const res = await fetch(`${base}/login`, { method: "POST", body: new URLSearchParams({ user }), redirect: "manual" });
	assert.equal(res.status, 303);
	cookies[user] = res.headers.get("set-cookie").split(";")[0];
}

async function say(user, text) {
	const res = await fetch(`${base}/groups/42/messages`, { method: "POST", headers: { cookie: cookies[user], "content-type": "application/json" }, body: JSON.stringify({ text }) });
	assert.equal(res.status, 201, await res.clone().text());
	return res.json();
}

const post = (text) => ({ method: "POST", url: new URL(`${base}/api/groups/42/messages`), body: JSON.stringify({ text }), headers: new Headers({ "content-type": "application/json" }) });

// waiting is the code of the last mention, by the app's poll.
async function waiting(id, password) {
	const basic = Buffer.from(`${encodeURIComponent(id)}:${encodeURIComponent(password)}`).toString("base64");
	const res = await fetch(`${base}/oauth2/grants?wait=5s`, { headers: { authorization: `Basic ${basic}` } });
	assert.equal(res.status, 200, await res.clone().text());
	const { grants } = await res.json();
	assert.equal(grants.length, 1);
	return grants[0];
}

let mentions = 0;
async function asked(text = `@probe number ${++mentions}`) {
	await say("zhang-san", text);
	return waiting("probe", secret);
}

// fails expects an OAuth error of that code, as both libraries tell it.
async function fails(promise, code, status = 400) {
	await assert.rejects(promise, (err) => {
		assert.equal(err.error, code, err.stack);
		assert.equal(err.status, status);
		return true;
	});
}

// --- steps

let passed = 0;
async function step(name, f) {
	const began = Date.now();
	await f();
	passed++;
	console.log(`ok ${name} (${Date.now() - began} ms)`);
}

async function main() {
	const discover = (id, auth) => openid.discovery(new URL(base), id, undefined, auth, { algorithm: "oauth2", execute: [openid.allowInsecureRequests] });
	let basic, byPost, rs, other, as;

	await step("openid-client discovers the server", async () => {
		basic = await discover("probe", openid.ClientSecretBasic(secret));
		byPost = await discover("probe", openid.ClientSecretPost(secret));
		rs = await discover("rs", openid.ClientSecretBasic("rs-secret"));
		other = await discover("other", openid.ClientSecretBasic("other-secret"));
		assert.equal(basic.serverMetadata().issuer, base);
		assert(basic.serverMetadata().grant_types_supported.includes(operation));
	});

	await step("oauth4webapi discovers the server", async () => {
		as = await oauth.processDiscoveryResponse(new URL(base), await oauth.discoveryRequest(new URL(base), { algorithm: "oauth2", ...insecure }));
		for (const endpoint of ["token_endpoint", "introspection_endpoint", "revocation_endpoint"]) assert(as[endpoint].startsWith(`${base}/oauth2/`));
	});

	await signIn("zhang-san");

	await step("openid-client redeems an operation by either method, once, and acts as the user", async () => {
		for (const config of [basic, byPost]) {
			const grant = await asked();
			const tokens = await openid.genericGrantRequest(config, operation, { code: grant.code });
			assert.equal(tokens.token_type, "bearer");
			assert.equal(tokens.scope, "group:42/message.write");
			assert.equal(tokens.grant_id, grant.id);
			assert.equal(tokens.uses, 3);
			assert.equal(tokens.expiresIn() > 590, true);
			const { url, method, body, headers } = post("by openid-client");
			const res = await openid.fetchProtectedResource(config, tokens.access_token, url, method, body, headers);
			assert.equal(res.status, 201);
			assert.equal((await res.json()).via, "probe");
			await fails(openid.genericGrantRequest(config, operation, { code: grant.code }), "invalid_grant");
		}
	});

	await step("openid-client introspects and revokes: each client what is its own", async () => {
		const { code, id } = await asked();
		const { access_token: token } = await openid.genericGrantRequest(basic, operation, { code });
		const own = await openid.tokenIntrospection(basic, token);
		assert.deepEqual([own.active, own.client_id, own.grant_id, own.uses_left, own.username], [true, "probe", id, 3, undefined]);
		const seen = await openid.tokenIntrospection(rs, token);
		assert.deepEqual([seen.active, seen.username, seen.sub], [true, "zhang-san", own.sub]);
		assert.deepEqual({ ...(await openid.tokenIntrospection(other, token)) }, { active: false });
		await openid.tokenRevocation(other, token);
		assert.equal((await openid.tokenIntrospection(basic, token)).active, true);
		await openid.tokenRevocation(basic, token);
		assert.deepEqual({ ...(await openid.tokenIntrospection(rs, token)) }, { active: false });
	});

	await step("openid-client gets a token for itself, which opens nothing of the users'", async () => {
		const tokens = await openid.clientCredentialsGrant(basic);
		const { url, method, body, headers } = post("by nobody");
		await assert.rejects(openid.fetchProtectedResource(basic, tokens.access_token, url, method, body, headers), (err) => {
			assert.equal(err.code, "OAUTH_WWW_AUTHENTICATE_CHALLENGE");
			assert.deepEqual([err.status, err.cause[0].scheme, err.cause[0].parameters.error], [401, "bearer", "invalid_token"]);
			return true;
		});
		await fails(openid.clientCredentialsGrant(basic, { scope: "group:42/message.write" }), "invalid_scope");
	});

	await step("oauth4webapi reads every refusal at the token endpoint", async () => {
		const client = { client_id: "probe" };
		const redeem = async (auth, grantType, params) => {
			const res = await oauth.genericTokenEndpointRequest(as, client, auth, grantType, new URLSearchParams(params), insecure);
			return oauth.processGenericTokenEndpointResponse(as, client, res);
		};
		await fails(redeem(oauth.ClientSecretPost(secret), operation, { code: "bhsc_made-up" }), "invalid_grant");
		await fails(redeem(oauth.ClientSecretPost(secret), operation, {}), "invalid_request");
		await fails(redeem(oauth.ClientSecretPost(secret), "urn:example:other", {}), "unsupported_grant_type");
		await fails(redeem(oauth.ClientSecretPost(secret), operation, { code: (await asked()).code, scope: "group:42/member.read" }), "invalid_scope");
		// With a challenge, oauth4webapi reports that instead of the body.
		await assert.rejects(redeem(oauth.ClientSecretBasic("wrong"), operation, { code: "x" }), (err) => {
			assert.deepEqual([err.code, err.status, err.cause[0].scheme], ["OAUTH_WWW_AUTHENTICATE_CHALLENGE", 401, "basic"]);
			return true;
		});
	});

	await step("oauth4webapi reads the challenges of the API: none, wrong place, used up", async () => {
		const { code } = await asked();
		const client = { client_id: "probe" };
		const res = await oauth.genericTokenEndpointRequest(as, client, oauth.ClientSecretBasic(secret), operation, new URLSearchParams({ code }), insecure);
		const { access_token: token } = await oauth.processGenericTokenEndpointResponse(as, client, res);
		const call = (url = post().url) => oauth.protectedResourceRequest(token, "POST", url, post().headers, JSON.stringify({ text: "by oauth4webapi" }), insecure);
		const challenged = (promise, status, error, scope) =>
			assert.rejects(promise, (err) => {
				const { scheme, parameters } = err.cause[0];
				assert.deepEqual([err.status, scheme, parameters.error, parameters.scope], [status, "bearer", error, scope], err.stack);
				return true;
			});
		await challenged(call(new URL(`${base}/api/groups/7/messages`)), 403, "insufficient_scope", "group:7/message.write");
		for (let i = 0; i < 3; i++) assert.equal((await call()).status, 201);
		await challenged(call(), 401, "invalid_token", undefined);
		await challenged(oauth.protectedResourceRequest("made-up", "POST", post().url, post().headers, "{}", insecure), 401, "invalid_token", undefined);
	});

	await step("oauth4webapi goes from a challenge to the resource's metadata and its server", async () => {
		const res = await fetch(`${base}/api/groups/42/messages`);
		const [, link] = /resource_metadata="([^"]+)"/.exec(res.headers.get("www-authenticate"));
		const resource = new URL(base);
		const found = await oauth.resourceDiscoveryRequest(resource, insecure);
		assert.equal(found.url, link);
		const metadata = await oauth.processResourceDiscoveryResponse(resource, found);
		assert.deepEqual([metadata.authorization_servers, metadata.bearer_methods_supported], [[base], ["header"]]);
	});

	await step("openid-client authenticates with a key: EdDSA, ES256, RS256, each assertion once", async () => {
		for (const alg of algorithms) {
			const id = alg.toLowerCase();
			const config = await discover(id, openid.PrivateKeyJwt(keys[alg].privateKey));
			await say("zhang-san", `@${id} do it`);
			const { access_token: own } = await openid.clientCredentialsGrant(config);
			const res = await fetch(`${base}/oauth2/grants?wait=5s`, { headers: { authorization: `Bearer ${own}` } });
			const { grants: [grant] } = await res.json();
			const tokens = await openid.genericGrantRequest(config, operation, { code: grant.code });
			const { url, method, body, headers } = post(`by ${alg}`);
			assert.equal((await openid.fetchProtectedResource(config, tokens.access_token, url, method, body, headers)).status, 201);

			// The same assertion again, and those that others signed or that are for others.
			const assertion = (claims, key = keys[alg].privateKey) =>
				new jose.SignJWT({ jti: crypto.randomUUID(), ...claims }).setProtectedHeader({ alg }).setIssuer(id).setSubject(id).setAudience(claims?.aud ?? base).setIssuedAt().setExpirationTime("60s").sign(key);
			const ask = async (client_assertion) => {
				const form = { grant_type: "client_credentials", client_assertion_type: "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", client_assertion };
				const res = await fetch(as.token_endpoint, { method: "POST", body: new URLSearchParams(form) });
				return [res.status, (await res.json()).error];
			};
			const once = await assertion();
			assert.deepEqual(await ask(once), [200, undefined]);
			assert.deepEqual(await ask(once), [401, "invalid_client"]);
			assert.deepEqual(await ask(await assertion({ aud: "https://elsewhere.example" })), [401, "invalid_client"]);
			const { privateKey: stranger } = await jose.generateKeyPair(alg);
			assert.deepEqual(await ask(await assertion({}, stranger)), [401, "invalid_client"]);
		}
	});

	await step("openid-client exchanges a token for a narrower one, and for one of another app's", async () => {
		const exchange = (config, subject_token, more) =>
			openid.genericGrantRequest(config, "urn:ietf:params:oauth:grant-type:token-exchange",
				{ subject_token, subject_token_type: "urn:ietf:params:oauth:token-type:access_token", ...more });
		const use = (config, token, thread) =>
			openid.fetchProtectedResource(config, token, post().url, "POST", JSON.stringify({ text: "by a child", thread }), post().headers);
		const left = async (token) => (await openid.tokenIntrospection(rs, token)).uses_left;
		const { access_token: parent, sub } = await openid.genericGrantRequest(basic, operation, { code: (await asked()).code });

		const authorization_details = JSON.stringify([{ type: "social_operation", uses: 1 }]);
		const child = await exchange(basic, parent, { scope: "group:42/thread:t1/message.write", authorization_details });
		assert.deepEqual([child.issued_token_type, child.scope, child.uses, child.sub], ["urn:ietf:params:oauth:token-type:access_token", "group:42/thread:t1/message.write", 1, sub]);
		assert.equal((await use(basic, child.access_token, "t1")).status, 201);
		assert.equal(await left(parent), 2, "the child's use is the parent's");
		await assert.rejects(use(basic, child.access_token, "t1"), { code: "OAUTH_WWW_AUTHENTICATE_CHALLENGE" });
		await fails(exchange(basic, parent, { scope: "group:7/message.write" }), "invalid_scope");

		const others = await exchange(other, parent);
		assert.notEqual(others.sub, sub, "each app has its own name for the account");
		assert.equal((await (await use(other, others.access_token)).json()).via, "other");
		const seen = await openid.tokenIntrospection(rs, others.access_token);
		assert.deepEqual([seen.client_id, seen.act, seen.authorization_details[0].type], ["other", { sub: "other", act: { sub: "probe" } }, "social_operation"]);
		const hook = await discover("hook", openid.ClientSecretBasic("hook-secret"));
		await fails(exchange(hook, parent), "invalid_request"); // who is not named learns nothing
		await fails(exchange(hook, "made-up"), "invalid_request");

		await openid.tokenRevocation(basic, parent);
		assert.equal((await openid.tokenIntrospection(rs, others.access_token)).active, false, "children die with it");
	});

	await step("openid-client binds a token to a key by DPoP: with a nonce, and to no other's", async () => {
		for (const alg of ["ES256", "Ed25519"]) {
			const config = await discover("bound", openid.ClientSecretBasic("bound-secret"));
			const DPoP = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair(alg)); // which tries again with the nonce
			await say("zhang-san", `@bound with ${alg}`);
			const { code } = await waiting("bound", "bound-secret");
			await fails(openid.genericGrantRequest(config, operation, { code }), "invalid_dpop_proof");
			const tokens = await openid.genericGrantRequest(config, operation, { code }, { DPoP });
			assert.equal(tokens.token_type, "dpop");
			const { url, method, body, headers } = post(`bound by ${alg}`);
			const call = (options) => openid.fetchProtectedResource(config, tokens.access_token, url, method, body, headers, options);
			for (let i = 0; i < 2; i++) assert.equal((await call({ DPoP })).status, 201); // a proof of its own for each
			const thief = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair(alg));
			for (const options of [{}, { DPoP: thief }]) {
				await assert.rejects(call(options), (err) => {
					assert.deepEqual([err.code, err.status], ["OAUTH_WWW_AUTHENTICATE_CHALLENGE", 401], err.stack);
					return true;
				});
			}
			const seen = await openid.tokenIntrospection(rs, tokens.access_token);
			assert.deepEqual([seen.token_type, seen.uses_left, typeof seen.cnf.jkt], ["DPoP", 1, "string"]);
		}
	});

	await step("openid-client signs people in, with a secret and as a public client, and refreshes", async () => {
		for (const [id, auth] of [["site", openid.ClientSecretBasic("site-secret")], ["phone", openid.None()]]) {
			const config = await discover(id, auth);
			const verifier = openid.randomPKCECodeVerifier();
			const state = openid.randomState();
			const redirect_uri = id === "phone" ? redirect.replace("127.0.0.1", "127.0.0.1:49152") : redirect; // RFC 8252 §7.3
			const link = openid.buildAuthorizationUrl(config, { redirect_uri, state, scope: "profile", code_challenge: await openid.calculatePKCECodeChallenge(verifier), code_challenge_method: "S256" });

			const stranger = await fetch(link, { redirect: "manual" });
			assert.equal(stranger.status, 303, "who is not logged in is sent to log in");
			const page = await fetch(link, { headers: { cookie: cookies["zhang-san"] }, redirect: "manual" });
			assert.equal(page.status, 200);
			const [, token] = /name="?token"? value="([^"]+)"/.exec(await page.text());
			const answer = async (headers, form) => fetch(link, { method: "POST", headers: { cookie: cookies["zhang-san"], ...headers }, body: new URLSearchParams(form), redirect: "manual" });
			assert.equal((await answer({ origin: "https://elsewhere.example" }, { token, answer: "yes" })).status, 403, "another site's form");
			assert.equal((await answer({}, { token: "made-up", answer: "yes" })).status, 403);
			const agreed = await answer({}, { token, answer: "yes" });
			assert.equal(agreed.status, 303);
			const back = new URL(agreed.headers.get("location"));
			assert.equal(back.searchParams.get("iss"), base); // RFC 9207, which openid-client checks too
			await assert.rejects(openid.authorizationCodeGrant(config, back, { pkceCodeVerifier: verifier, expectedState: "another" }));

			const tokens = await openid.authorizationCodeGrant(config, back, { pkceCodeVerifier: verifier, expectedState: state });
			assert.deepEqual([tokens.scope, tokens.username, tokens.expiresIn() > 3590], ["profile", "zhang-san", true]);
			const next = await openid.refreshTokenGrant(config, tokens.refresh_token);
			assert.equal(next.sub, tokens.sub);
			assert.notEqual(next.refresh_token, tokens.refresh_token);
			await fails(openid.refreshTokenGrant(config, tokens.refresh_token), "invalid_grant"); // within 10 s: the family lives
			const last = await openid.refreshTokenGrant(config, next.refresh_token);
			await fails(openid.authorizationCodeGrant(config, back, { pkceCodeVerifier: verifier, expectedState: state }), "invalid_grant");

			const { url, method, body, headers } = post("who somebody is opens nothing");
			await assert.rejects(openid.fetchProtectedResource(config, last.access_token, url, method, body, headers), { code: "OAUTH_WWW_AUTHENTICATE_CHALLENGE" });
			if (id === "phone") continue; // a public client proves nothing at these endpoints
			assert.equal((await openid.tokenIntrospection(config, last.access_token)).sub, tokens.sub);
			await openid.tokenRevocation(config, last.refresh_token);
			assert.deepEqual({ ...(await openid.tokenIntrospection(config, last.access_token)) }, { active: false });
		}
	});

	await step("jose and oauth4webapi verify a stateless token by the JWKS, for its audience alone", async () => {
		await say("zhang-san", "@reader who is here?");
		const { code } = await waiting("reader", "reader-secret");
		const config = await discover("reader", openid.ClientSecretBasic("reader-secret"));
		const { access_token: token, token_type } = await openid.genericGrantRequest(config, operation, { code });
		assert.equal(token_type, "bearer");
		const set = jose.createRemoteJWKSet(new URL(as.jwks_uri));
		const rules = { issuer: base, audience, typ: "at+jwt", algorithms: ["EdDSA"], requiredClaims: ["exp", "iat", "jti", "sub", "client_id", "scope"], maxTokenAge: "5m" };
		const { payload } = await jose.jwtVerify(token, set, rules);
		assert.deepEqual([payload.sub, payload.client_id, payload.scope], ["zhang-san", "reader", "group:42/member.read"]);
		await assert.rejects(jose.jwtVerify(token, set, { ...rules, audience: base }), { code: "ERR_JWT_CLAIM_VALIDATION_FAILED" });
		await assert.rejects(jose.jwtVerify(token, set, { ...rules, typ: "JWT" }), { code: "ERR_JWT_CLAIM_VALIDATION_FAILED" });
		const request = new Request(`${audience}/list`, { headers: { authorization: `Bearer ${token}` } });
		const claims = await oauth.validateJwtAccessToken(as, request, audience, insecure);
		assert.equal(claims.jti, payload.jti);
	});

	await step("standardwebhooks verifies a push, and nothing that was changed", async () => {
		const { client_id, webhook_secret } = info.apps.find((a) => a.client_id === "hook");
		const arrived = new Promise((resolve) => (pushed = resolve));
		await say("zhang-san", "@hook are you there?");
		await arrived;
		const { headers, body } = pushes[0];
		const webhook = new Webhook(webhook_secret);
		const said = webhook.verify(body, headers);
		assert.equal(said.type, "grant.issued");
		assert.match(headers["webhook-signature"], /v1,.*v1a,/);
		assert.throws(() => webhook.verify(body.replace("42", "43"), headers), WebhookVerificationError);
		assert.throws(() => webhook.verify(body, { ...headers, "webhook-id": "another" }), WebhookVerificationError);
		assert.throws(() => new Webhook(info.apps.find((a) => a.client_id === "probe").webhook_secret).verify(body, headers), WebhookVerificationError);

		const config = await discover(client_id, openid.ClientSecretBasic("hook-secret"));
		const tokens = await openid.genericGrantRequest(config, operation, { code: said.data.code });
		assert.equal(tokens.grant_id, said.data.id);
		await fails(openid.genericGrantRequest(basic, operation, { code: said.data.code }), "invalid_grant"); // in the wrong hands
	});
}

let status = 0;
try {
	await main();
	console.log(`${passed} steps passed`);
} catch (err) {
	console.log(`FAIL after ${passed} steps\n`, err);
	status = 1;
} finally {
	receiver.close();
	groupchat.kill("SIGINT");
	const [code] = await once(groupchat, "exit");
	if (code !== 0) {
		console.log(`FAIL groupchat ended with ${code}`);
		status = 1;
	}
	await rm(dir, { recursive: true });
}
process.exit(status);
