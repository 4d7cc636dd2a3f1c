// Package app is the third-party side of behest: it receives grants, redeems them and acts as the user with them.
// It needs nothing of the server's packages.
//
// The laws:
//
//  1. A grant reaches the app as a one-time code, in three ways: pushed to a [Receiver], fetched by a [Poller], or in
//     the URL when the user's client arrives ([Client.Callback]). The code is worth nothing without the app's secret.
//  2. A delivery is at least once and is handled once: its id is remembered when Handle returns nil, and only then. An
//     error, a panic or a crash has it delivered again.
//  3. Credentials go where they belong: the secret to the endpoints, a token to the API's origin. No redirect is
//     followed with either, and plain http is for loopback.
//  4. Codes, tokens and secrets are [Secret]: they redact themselves in fmt, JSON and slog. Errors hold no query of a URL.
//  5. The server's answers are bounded, and are read only when they are what the protocol says.
//  6. A delegation token is not refreshed. When it is over, the user has to ask again; errors say why it is over.
//
// Format: a grant is {"id", "code", "scope", "redeem_by", "event": {"id", "operation", "account", "domain", "text",
// "target", "data", "at"}}. A webhook is {"type": "grant.issued", "timestamp", "data": grant}, signed as authz/webhook
// says; a poll is GET {issuer}/oauth2/grants?wait=25s and answers {"grants": [grant, …]}; a code is redeemed by POST
// {issuer}/oauth2/token with grant_type=urn:behest:grant-type:operation.
//
// Use:
//
//	client := &app.Client{Issuer: "https://social.example", ID: "bookbot", Secret: app.NewSecret(secret)}
//	http.Handle("/hook", &app.Receiver{Keys: keys, Handle: func(ctx context.Context, g app.Grant) error {
//		token, err := client.Redeem(ctx, g.Code)
//		if err != nil { return err }
//		return post(ctx, client, token, "Your book is here.") // by client.Do(req, token)
//	}})
package app
