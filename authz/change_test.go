package authz_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// alone has the nodes share a store that tells at once what was written, so that no change waits.
func alone(shared store.Store) func(int, *authz.Config) {
	return func(_ int, c *authz.Config) { c.Store = shared }
}

func (n *node) change(c authz.Change) {
	n.w.tb.Helper()
	require.NoError(n.w.tb, n.Change(context.Background(), c))
}

// P5 over HTTP, on nodes that look each second: it holds on the other within 3 s, and the call returns only then.
func TestP5SuspendedOnNodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	first, last := w.nodes[0], w.last()
	token, waiting := w.token("zhang-san", "bookbot", "group:42"), w.emit("zhang-san", "bookbot", "group:42").Code.Reveal()
	began := time.Now()
	changed := make(chan error, 1)
	go func() {
		changed <- first.Change(t.Context(), authz.Change{SuspendApps: []string{"bookbot"}, By: "the admin"})
	}()
	var held time.Duration
	for held == 0 {
		require.Less(t, time.Since(began), 10*time.Second)
		if last.introspect("rs", token).json["active"] == false {
			held = time.Since(began)
		}
	}
	require.LessOrEqual(t, held, 3*time.Second+500*time.Millisecond) // the machine may be slow
	require.NoError(t, <-changed)
	require.GreaterOrEqual(t, time.Since(began), 3*time.Second)
	for _, n := range w.nodes {
		a := n.call(token, in42, "x")
		require.Equal(t, []any{401, "revoked"}, []any{a.status, a.reason()})
		a = n.redeem("bookbot", waiting)
		require.Equal(t, []any{401, "invalid_client"}, []any{a.status, a.json["error"]})
		require.Equal(t, 401, n.introspect("bookbot", token).status)
		_, _, err := n.Engine().Redeem(t.Context(), "bookbot", grant.NewSecret(waiting))
		require.ErrorIs(t, err, grant.ErrRevoked)
		issued, err := n.Emit(t.Context(), w.mention("never", "zhang-san", "bookbot", "group:42"))
		require.NoError(t, err)
		require.Empty(t, issued)
	}
	require.Empty(t, w.posts.all())
	require.NoError(t, last.Change(t.Context(), authz.Change{ResumeApps: []string{"bookbot"}}))
	for _, n := range w.nodes {
		require.Equal(t, 201, n.call(token, in42, "x").status)
	}
	require.Equal(t, 200, first.redeem("bookbot", waiting).status)
	require.Contains(t, w.log.String(), `msg="configuration changed" number=1 by="the admin" suspend_apps=[bookbot]`)
}

// An app that is added while the servers run has all that one of Config's has, on every node.
func TestChangeAddsApp(t *testing.T) {
	w := newWorld(t, 2, alone(store.NewMemory()))
	first, last := w.nodes[0], w.last()
	const secret = "dj secret +%&:"
	w.secrets["dj"] = secret
	var moved atomic.Bool // the webhook to another place
	pushed := make(chan app.Grant, 10)
	var key atomic.Pointer[webhook.Key]
	hook := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			moved.Store(true)
			http.Error(rw, "moved", http.StatusGone)
			return
		}
		(&app.Receiver{Keys: []webhook.Key{*key.Load()}, Now: w.clock.Now, Handle: func(_ context.Context, g app.Grant) error { pushed <- g; return nil }}).ServeHTTP(rw, r)
	}))
	defer hook.Close()
	first.change(authz.Change{By: "admin",
		Apps: []authz.App{{ID: "dj", Name: "DJ", Secret: grant.NewSecret(secret), Actions: []string{"message.write"}, Webhook: hook.URL + "/old",
			RedirectURIs: []string{"https://dj.example/opened"}, RealNames: true, Introspect: true}},
		Triggers: []grant.Trigger{
			{ID: "play", App: "dj", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, RedeemWithin: time.Minute},
			{ID: "open", App: "dj", On: grant.LinkOpen, In: "group:*", Allow: []string{"message.write"}, Match: grant.Match{LinkPrefix: "https://dj.example/"}}}})
	k, err := webhook.ParseKey(last.WebhookSecret("dj").Reveal())
	require.NoError(t, err)
	key.Store(&k)
	require.Equal(t, first.WebhookKey("dj"), last.WebhookKey("dj"))
	require.NotEmpty(t, last.WebhookKey("dj"))

	// A delivery under way goes to the new place at its next try.
	i := w.emit("zhang-san", "dj", "group:42")
	require.Equal(t, grant.Push, i.Deliver)
	require.Eventually(t, moved.Load, 10*time.Second, time.Millisecond)
	edited := authz.App{ID: "dj", Name: "Disc Jockey", Actions: []string{"message.write"}, Webhook: hook.URL + "/new",
		RedirectURIs: []string{"https://dj.example/opened"}, RealNames: true, Introspect: true} // without the secret
	last.change(authz.Change{Apps: []authz.App{edited}})
	// Again and again: when the answer has come back, and the next try is put off, nobody tells.
	require.Eventually(t, func() bool { w.clock.Advance(500 * time.Millisecond); return len(pushed) > 0 }, 10*time.Second, 20*time.Millisecond)
	g := <-pushed
	require.Equal(t, i.ID, g.ID)
	require.Equal(t, "zhang-san", g.Event.Account)
	a := last.redeem("dj", g.Code.Reveal())
	require.Equal(t, 200, a.status, a.body)
	require.Equal(t, "zhang-san", a.json["sub"])
	token := a.json["access_token"].(string)
	require.Equal(t, 201, first.call(token, in42, "x").status)
	require.Equal(t, "zhang-san", last.introspect("dj", token).json["username"])

	issued, err := last.Emit(t.Context(), grant.Event{ID: "l1", Operation: grant.LinkOpen, Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "dj", Target: "https://dj.example/song"})
	require.NoError(t, err)
	require.Len(t, issued, 1)
	require.True(t, strings.HasPrefix(issued[0].Link(), "https://dj.example/opened?code="))

	apps, triggers, err := first.Configuration(t.Context())
	require.NoError(t, err)
	require.Len(t, apps, 5)
	require.Equal(t, edited, apps[4], "all but its secrets")
	apps[4].Actions[0], triggers[0].Allow[0] = "changed", "changed" // it is the caller's

	// Another secret: the old one is over, with what it has made.
	client := func(n *node) answer {
		return n.form("dj", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}})
	}
	bearer := client(first).json["access_token"].(string)
	polled := func(n *node) int {
		req, err := http.NewRequest("GET", n.url+"/oauth2/grants", nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+bearer)
		return n.send(req).status
	}
	require.Equal(t, 200, polled(last))
	edited.Secret, edited.WebhookSecret = grant.NewSecret("another secret"), grant.NewSecret(webhook.NewSecret().Reveal())
	last.change(authz.Change{Apps: []authz.App{edited}})
	require.Equal(t, 401, client(first).status)
	require.Equal(t, 401, polled(first))
	w.secrets["dj"] = "another secret"
	require.Equal(t, 200, client(first).status)
	require.Equal(t, edited.WebhookSecret.Reveal(), first.WebhookSecret("dj").Reveal())

	// Removed, it is nobody.
	w.emit("zhang-san", "dj", "group:42") // signed with a key that the receiver does not know: it waits
	first.change(authz.Change{RemoveApps: []string{"dj"}})
	require.Equal(t, 401, client(last).status)
	require.Equal(t, "revoked", last.call(token, in42, "x").reason())
	require.Empty(t, last.WebhookKey("dj"))
	require.True(t, first.WebhookSecret("dj").IsZero())
	w.clock.Advance(20 * time.Second)
	due, err := last.Engine().Claim(t.Context(), grant.Push, "dj", nil, 10, time.Second)
	require.NoError(t, err)
	require.Empty(t, due)
}

// Config's own apps are changed as well; a suspended one gets nothing, and what waited for it arrives afterwards.
func TestChangeSuspendsDeliveries(t *testing.T) {
	shared := store.NewMemory()
	w := newWorld(t, 2, alone(shared))
	first, last := w.nodes[0], w.last()
	for name, c := range map[string][2]authz.Change{
		"the app":     {{SuspendApps: []string{"pushbot"}}, {ResumeApps: []string{"pushbot"}}},
		"the trigger": {{SuspendTriggers: []string{"push"}}, {ResumeTriggers: []string{"push"}}},
	} {
		// Emitted within a transaction, of which nobody hears before its commit.
		committed := store.NewMemory()
		issued, err := first.In(committed).Emit(t.Context(), w.mention("m "+name, "zhang-san", "pushbot", "group:42"))
		require.NoError(t, err)
		require.Len(t, issued, 1, name)
		first.change(c[0])
		commit(t, committed, shared)
		before := w.pushes.Load()
		due, err := last.Engine().Claim(t.Context(), grant.Push, "pushbot", nil, 10, time.Second)
		require.NoError(t, err)
		require.Empty(t, due, name)
		require.Equal(t, before, w.pushes.Load(), name)
		last.change(c[1])
		require.Eventually(t, func() bool { w.clock.Advance(2 * time.Second); return len(w.pushed) > 0 }, 10*time.Second, 20*time.Millisecond, name)
		g := <-w.pushed
		require.Equal(t, issued[0].ID, g.ID, name)
	}
}

func TestChangeInvalid(t *testing.T) {
	w := newWorld(t, 1, alone(store.NewMemory()))
	err := w.nodes[0].Change(t.Context(), authz.Change{
		Apps: []authz.App{
			{ID: "new", Actions: []string{"message.write"}},
			{ID: "short", Secret: grant.NewSecret("1234567")},
			{ID: "zero", Secret: grant.NewSecret("12345678\x00")},
			{ID: "bookbot", Actions: []string{"message.write", "member.read"}},
			{ID: "inside", Secret: grant.NewSecret("long enough"), Webhook: "http://169.254.169.254/", WebhookSecret: grant.NewSecret("whsec_?")},
			{ID: "both", Secret: grant.NewSecret("long enough")},
			{ID: "uri", Secret: grant.NewSecret("long enough"), RedirectURIs: []string{"http://uri.example/", "https://uri.example/?code=1"}},
		},
		Triggers: []grant.Trigger{{ID: "new", App: "new", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Deliver: grant.Push},
			{ID: "", App: "none", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}}},
		RemoveApps: []string{"both"}, SuspendApps: []string{"nobody"}, ResumeTriggers: []string{"nothing", "book"}, SuspendTriggers: []string{"book"},
		RemoveTriggers: []string{"book"},
	})
	require.ErrorIs(t, err, grant.ErrInvalid)
	for _, text := range []string{
		`app "new": Secret has 0 bytes`, `app "short": Secret has 7 bytes`, `app "zero": Secret is not text`, `app "inside": Webhook:`, `app "inside": WebhookSecret:`,
		`RedirectURIs: "http://uri.example/"`, `RedirectURIs: "https://uri.example/?code=1"`, `trigger "link": deliver: the app "bookbot" has no redirect URI`,
		`trigger "new": deliver: the app "new" has no webhook`, `no app has the ID "none"`, `app "both" is to be there and to be removed`, `there is no app "nobody" to suspend`, `there is no trigger "nothing" to suspend or resume`,
		`trigger "book" is to be suspended and resumed`, `trigger "book" is to be removed, and suspended or resumed`,
	} {
		require.ErrorContains(t, err, text)
	}
	require.NotContains(t, err.Error(), "1234567\n")
	apps, _, err := w.nodes[0].Configuration(t.Context())
	require.NoError(t, err)
	require.Len(t, apps, 4)
	require.NotContains(t, w.log.String(), "configuration changed")
	// One that was once faulty leaves nothing behind.
	w.nodes[0].change(authz.Change{Apps: []authz.App{{ID: "short", Secret: grant.NewSecret("12345678")}}})
	w.nodes[0].change(authz.Change{Apps: []authz.App{{ID: "short", Name: "still short"}}})
}

// P6: secrets of apps that are stored at run time are nowhere in the clear, nor is what would verify them.
func TestP6ChangeKeepsSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0]
	secret, hookSecret := "the secret of the new app", webhook.NewSecret().Reveal()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // nobody else is there to be waited for
	defer cancel()
	err := n.Change(ctx, authz.Change{By: "admin", Apps: []authz.App{{ID: "new", Secret: grant.NewSecret(secret), WebhookSecret: grant.NewSecret(hookSecret),
		Webhook: "http://127.0.0.1:1/hook", RedirectURIs: []string{"https://new.example/cb"}}}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "change 1 is made")
	w.secrets["new"] = secret
	require.Equal(t, 200, n.form("new", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}}).status)
	require.Equal(t, hookSecret, n.WebhookSecret("new").Reveal())
	hash := sha256.Sum256([]byte(secret))
	conf, _, err := n.Configuration(t.Context())
	require.NoError(t, err)
	inner, err := n.Engine().Configuration(t.Context())
	require.NoError(t, err)
	shown := fmt.Sprintf("%v %+v %#v %v %+v %#v %v", conf, conf, conf, inner, inner, inner, err)
	var stored strings.Builder
	kinds := []string{"config", "event", "grant", "token", "revocation", "consent", "window", "ledger", "push", "poll", "redirect", "access", "assertion", "key"}
	for _, kind := range kinds {
		found, err := w.store.List(t.Context(), store.Query{Kind: kind, Limit: store.MaxPage})
		require.NoError(t, err)
		for _, r := range found {
			fmt.Fprintf(&stored, "%s %s %s %s %s\n", r.Kind, r.ID, r.Owner, r.App, r.Data)
		}
	}
	require.Contains(t, stored.String(), "config config.head")
	raw := strings.TrimPrefix(hookSecret, "whsec_")
	for _, text := range []string{secret, url.QueryEscape(secret), raw, string(hash[:]), base64.RawURLEncoding.EncodeToString(hash[:]), fmt.Sprintf("%x", hash)} {
		for where, in := range map[string]string{"the store": stored.String(), "what was written": w.store.written.String(), "the log": w.log.String(), "fmt": shown} {
			require.NotContains(t, in, text, where)
		}
	}
}

// A node whose store is away lets nothing through, says 503, and is back by itself.
func TestP5CutOffNode(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	token, code := w.token("zhang-san", "bookbot", "group:42"), w.emit("zhang-san", "bookbot", "group:42").Code.Reveal()
	w.store.fail(errors.New("no route to the store"))
	w.clock.Advance(3 * time.Second)
	for name, a := range map[string]answer{
		"a call":       n.call(token, in42, "x"),
		"a redemption": n.redeem("bookbot", code),
		"a question":   n.introspect("rs", token),
		"a client":     n.form("bookbot", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}}),
		"a stranger":   n.form("nobody", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}}),
		"a revocation": n.form("bookbot", "/oauth2/revoke", url.Values{"token": {token}}),
	} {
		require.Equal(t, 503, a.status, name)
		require.Equal(t, "1", a.header.Get("Retry-After"), name)
		require.Equal(t, "temporarily_unavailable", a.json["error"], name)
		require.NotContains(t, a.body, "route", name)
	}
	require.Equal(t, 401, n.call(token[:len(token)-8]+"AAAAAAAA", in42, "x").status, "a forgery costs the store nothing")
	_, err := n.Emit(t.Context(), w.mention("m", "zhang-san", "bookbot", "group:42"))
	require.ErrorContains(t, err, "no route to the store")
	_, _, err = n.Configuration(t.Context())
	require.Error(t, err)
	require.Error(t, n.Change(t.Context(), authz.Change{SuspendApps: []string{"bookbot"}}))
	require.NotEmpty(t, n.WebhookKey("pushbot"), "what is no authority is still known")
	require.Empty(t, w.posts.all())

	w.store.fail(nil)
	require.Equal(t, 201, n.call(token, in42, "x").status)
	require.Equal(t, 200, n.redeem("bookbot", code).status)
	require.Contains(t, w.log.String(), "no route to the store")
}

// What Run says of a store that is away: when that begins, every ten seconds, and when it is back.
func TestRunLooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.store.fail(errors.New("no route to the store"))
	logged := func(text string) func() bool { return func() bool { return strings.Contains(w.log.String(), text) } }
	require.Eventually(t, logged("the configuration cannot be read"), 10*time.Second, 10*time.Millisecond)
	calls := w.store.calls.Load()
	require.Eventually(t, func() bool { return w.store.calls.Load() > calls+12 }, 20*time.Second, 10*time.Millisecond, "it goes on looking")
	w.store.fail(nil)
	back := "the configuration cannot be read; in 3 s nothing is let through: well again"
	require.Eventually(t, logged(back), 10*time.Second, 10*time.Millisecond)
	require.LessOrEqual(t, strings.Count(w.log.String(), "the configuration cannot be read"), 4)
}

// commit puts what was written in a transaction into the store.
func commit(t *testing.T, from, to store.Store) {
	t.Helper()
	for _, kind := range []string{"event", "grant", "ledger", "push"} {
		found, err := from.List(t.Context(), store.Query{Kind: kind})
		require.NoError(t, err)
		for _, r := range found {
			r.Version = 0
			out, err := to.Apply(t.Context(), time.Time{}, []store.Op{store.Put(r)})
			require.NoError(t, err)
			require.True(t, out.Applied())
		}
	}
}
