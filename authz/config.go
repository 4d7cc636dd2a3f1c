package authz

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/guard"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Config is all that a Server needs to know. Required are Issuer and Permit; with a Store of your own also Key.
type Config struct {
	// Issuer is the server's own URL: https, or http on a loopback address for development; no query, no fragment, no
	// slash at the end (RFC 8414 §2), and in its path, if it has one, only A-Z a-z 0-9 . _ ~ - between the slashes.
	// Required.
	Issuer string
	// Prefix is the path of the endpoints, below the issuer's. Empty: "/oauth2".
	Prefix string
	// Permit says whether the account itself may do this here, right now: nil is yes, an error that wraps
	// grant.ErrDenied is no, any other error is a 503 that spends nothing. It is asked at issue and again at every
	// use. Required.
	Permit func(context.Context, grant.Access) error

	// Apps and Triggers are where the server begins. What Change says goes before them, also when it starts again.
	Apps     []App
	Triggers []grant.Trigger
	Catalog  *scope.Catalog // what can be done; nil: scope.BuiltIn

	// Account says which account is logged in where the request comes from, such as by a cookie: "" and nil for nobody.
	// An error means that nobody knows, which is a 503. With it people can sign in to apps with their accounts here:
	// there is an authorization endpoint. Nil: there is none.
	Account func(*http.Request) (account string, err error)
	// LoginURL is where people log in: a path of this site, such as "/login", or an https URL. They are sent there with
	// the parameter return_to, the path and query from which to go on; redirect to it only if it is a path of your own
	// site, as all that comes in a URL. Required with Account.
	LoginURL string

	// Store remembers. Nil: a new store.Memory, which forgets when the process ends.
	Store store.Store
	// Waker hears of what other nodes write. Nil: the Store, if it is one; else deliveries and long polls look every
	// 250 ms.
	Waker Waker
	// Key is the root of all keys, at least 32 bytes from a good source; see grant.Config. Required with a Store;
	// zero without one: made at random.
	Key     grant.Secret
	Sealing []grant.Secret // see grant.Config
	// InsecureKeyInStore, when Key is zero, makes a key and keeps it in the Store in the clear, for all servers that
	// share it. Safe only where nobody reads the database, its backups or its replicas who may not act as any user.
	InsecureKeyInStore bool

	// JWTAudience is the URL of the resource servers that verify the tokens of stateless triggers alone (see JWTSigner): not
	// the Issuer, whose own Require takes no JWT. Empty: no trigger may be stateless.
	JWTAudience string
	// JWTKeys sign them; see NewJWTSigner for what they are and how they rotate. Empty: a key derived from Key, for Ed25519.
	JWTKeys []grant.Secret

	// Observe is told what was written to the ledger, and of each attempt to deliver (see Deliverer). It must not
	// block. Nil: nobody is told.
	Observe func(context.Context, grant.Entry)
	// AllowWebhooksTo names hosts ("bookbot.internal" or "127.0.0.1:9000", as written in an App's Webhook) whose
	// address may be private or loopback, and whose scheme may be http. Everything else must have a public address,
	// which is checked after the name was resolved. Empty: no exceptions.
	AllowWebhooksTo []string
	KeepLedger      time.Duration    // how long the ledger is kept at least; zero: 90 days
	Now             func() time.Time // nil: time.Now
	Log             *slog.Logger     // nil: nothing is logged
}

// An App is a third-party application: an OAuth client that grants are for. A client that only introspects is an App
// with Introspect alone.
type App struct {
	ID      string       // 1 to 64 of A-Z a-z 0-9 . _ -; the client_id
	Name    string       // shown to people as "via Name", at most 100 bytes in one line; empty: the ID
	Secret  grant.Secret // the client_secret, 8 to 256 bytes that a machine made; see AuthMethod
	Actions []string     // the most that any trigger may allow it

	// SecretHash, in place of Secret, is the argon2id hash of a client_secret that a person chose, in the PHC string
	// format: "$argon2id$v=19$m=19456,t=2,p=1$salt$hash", as [HashSecret] makes it. 7 to 64 MiB (m in KiB), 1 to 10
	// passes (t), 1 to 4 lanes (p), and m times t from 35840 to 262144. Each request of the app costs the server that
	// work, of which few run at a time, and where one app has such a hash so does each failed try of any: who waits for
	// 5 s is answered 503.
	SecretHash grant.Secret
	// JWKS are the public keys by which the app authenticates with private_key_jwt (RFC 7523, OpenID Connect Core §9): a
	// JWK set (RFC 7517 §5) of 1 to 16, of Ed25519 (EdDSA), P-256 (ES256) or RSA from 2048 to 4096 bits (RS256). To change
	// a key have both in the set for a while. Empty: it cannot.
	JWKS string
	// AuthMethod is the one method by which the app authenticates, in the words of RFC 7591 §2: client_secret_basic,
	// client_secret_post or private_key_jwt. Empty: by any for which it has a secret or keys, of which one is required.
	// none: a public client, which has neither and can only ever sign people in with PKCE: no Actions, no Introspect.
	AuthMethod string
	// KeyBound wants the app's tokens bound to a key (DPoP, RFC 9449): a code is redeemed only with a proof, with JWKS by
	// one of those keys alone, so that who steals the body of a webhook, or the secret too, cannot act with it. False: the
	// app may bind its tokens, by sending a proof.
	KeyBound bool

	// Webhook is where grants are pushed to: https, unless AllowWebhooksTo names its host. Empty: the app polls.
	Webhook string
	// WebhookSecret signs pushes with v1 (HMAC-SHA256): "whsec_" and base64 of 24 to 64 bytes, see webhook.ParseKey.
	// Zero: derived from the server's key; Server.WebhookSecret tells it. Every push is also signed with v1a
	// (Ed25519), see Server.WebhookKey.
	WebhookSecret grant.Secret
	// RedirectURIs are where links of Redirect triggers lead, and where people return to who sign in: https, or http on
	// loopback; no fragment, and neither code, state, iss nor error in the query. Links lead to the first one. Who signs
	// in returns to any of them, which are compared as they are written; "http://127.0.0.1/cb" and "http://[::1]/cb",
	// without a port, stand for all ports, since native apps listen where they can (RFC 8252 §7.3).
	RedirectURIs []string
	RealNames    bool // sees accounts by their own names instead of pairwise ones
	Suspended    bool // gets nothing, cannot authenticate, and what it was granted is refused as revoked; see Change
	Introspect   bool // a resource server: may introspect every token, and is told the account
}

// check leaves the apps and triggers to checkApps.
func (c *Config) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("authz: "+format, args...)) }
	if !plainURL(c.Issuer) {
		fault("Issuer: %.80q is not an https URL with a plain path or none, without query, fragment and final slash", c.Issuer)
	}
	if !plainPath(c.Prefix) {
		fault("Prefix: %.80q is not a path such as \"/oauth2\": a slash before each part, of A-Z a-z 0-9 . _ ~ -", c.Prefix)
	}
	if c.Permit == nil {
		fault("Permit is required")
	}
	switch u, err := url.Parse(c.LoginURL); {
	case (c.Account == nil) != (c.LoginURL == ""):
		fault("Account and LoginURL go together: one says who is logged in, the other where people log in")
	case c.LoginURL != "" && (err != nil || !secure(u) && (u.IsAbs() || !strings.HasPrefix(u.Path, "/") || u.Host != "")):
		fault("LoginURL: %.80q is neither a path nor an https URL", c.LoginURL)
	}
	if c.Store != nil && c.Key.IsZero() && !c.InsecureKeyInStore {
		fault("Key is required with a Store: without it, codes and tokens do not outlive this process, nor hold on another")
	}
	if len(c.JWTKeys) > 0 && c.JWTAudience == "" {
		fault("JWTKeys without a JWTAudience")
	}
	return errors.Join(faults...)
}

// checkStateless is about triggers whose tokens somebody must sign.
func (c *Config) checkStateless(triggers []grant.Trigger) error {
	var faults []error
	for _, t := range triggers {
		if t.Stateless && c.JWTAudience == "" {
			faults = append(faults, fmt.Errorf("authz: trigger %.80q: stateless: there is no JWTAudience that its token could be for", triggerID(t)))
		}
	}
	return errors.Join(faults...)
}

// checkApps is what the engine asks about every configuration: what it does not know of itself. The guard is nil if
// there is none because of another fault.
func checkApps(g *guard.Guard, registered []grant.App, triggers []grant.Trigger) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("authz: "+format, args...)) }
	apps := make(map[string]App, len(registered))
	for i := range registered {
		of, err := clientOf(&registered[i])
		a := of.app
		if err != nil {
			fault("app %.80q: %w", a.ID, err)
		}
		if a.Webhook != "" && g != nil {
			if err := g.CheckURL(a.Webhook); err != nil {
				fault("app %.80q: Webhook: %w", a.ID, err)
			}
		}
		if !a.WebhookSecret.IsZero() {
			if _, err := webhook.ParseKey(a.WebhookSecret.Reveal()); err != nil {
				fault("app %.80q: WebhookSecret: %w", a.ID, err)
			} else if !strings.HasPrefix(a.WebhookSecret.Reveal(), "whsec_") { // one half of a pair signs nothing, or should not be told to the app
				fault("app %.80q: WebhookSecret is not of the kind whsec_", a.ID)
			}
		}
		for _, r := range a.RedirectURIs {
			u, err := url.Parse(r)
			if err != nil || !secure(u) || strings.ContainsFunc(r, func(c rune) bool { return c <= ' ' || c > '~' || c == '#' }) {
				fault("app %.80q: RedirectURIs: %.80q is not an https URL in ASCII, without fragment", a.ID, r)
			} else if q, err := url.ParseQuery(u.RawQuery); err != nil || slices.ContainsFunc([]string{"code", "iss", "state", "error", "error_description"}, q.Has) {
				fault("app %.80q: RedirectURIs: %.80q has a malformed query, or a parameter in it that an answer to the app has: code, state, iss, error", a.ID, r)
			}
		}
		if _, twice := apps[a.ID]; !twice {
			apps[a.ID] = a
		}
	}
	for _, t := range triggers {
		a, ok := apps[t.App]
		if !ok {
			continue // the engine says so
		}
		if redirect := t.Deliver == grant.Redirect || t.Deliver == "" && (t.On == grant.LinkOpen || t.On == grant.PageOpen); redirect && len(a.RedirectURIs) == 0 {
			fault("trigger %.80q: deliver: the app %.80q has no redirect URI", triggerID(t), t.App)
		}
		if a.KeyBound && t.Stateless {
			fault("trigger %.80q: stateless: the tokens of the app %.80q are bound to a key, and those of the trigger cannot be", triggerID(t), t.App)
		}
		if t.Deliver == grant.Push && a.Webhook == "" {
			fault("trigger %.80q: deliver: the app %.80q has no webhook", triggerID(t), t.App)
		}
	}
	return errors.Join(faults...)
}

// triggerID is as the engine calls it.
func triggerID(t grant.Trigger) string { return cmp.Or(t.ID, t.App+":"+string(t.On)+":"+t.In) }

// plainPath is "" or "/a/b": what means the same in a URL and in a pattern of http.ServeMux.
func plainPath(path string) bool {
	if path == "" {
		return true
	}
	for i, part := range strings.Split(path, "/") {
		if (part == "") != (i == 0) || part == "." || part == ".." ||
			strings.Trim(part, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-") != "" {
			return false
		}
	}
	return true
}

// secure is https, or http to this machine.
func secure(u *url.URL) bool {
	switch u.Scheme {
	case "https":
		return u.Host != "" && u.User == nil
	case "http":
		return u.User == nil && slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, u.Hostname())
	}
	return false
}
