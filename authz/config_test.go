package authz_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// configured is a Config without fault.
func configured() authz.Config {
	return authz.Config{
		Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []authz.App{
			{ID: "bookbot", Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}, Webhook: "https://bookbot.example/hook", RedirectURIs: []string{"https://bookbot.example/cb"}},
			{ID: "pollbot", Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}},
		},
		Triggers: []grant.Trigger{{ID: "book", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}}},
	}
}

type fault struct {
	name  string
	spoil func(*authz.Config)
	says  []string
}

func faults() []fault {
	var out []fault
	add := func(name string, f func(*authz.Config), says ...string) { out = append(out, fault{name, f, says}) }
	for _, issuer := range []string{"", "social.example", "/oauth", "http://social.example", "ftp://social.example", "https://", "https:///x", "https:social.example", "https://social.example/", "https://social.example/a/",
		"https://social.example?", "https://social.example?x=1", "https://social.example#", "https://social.example#x", "https://me:pass@social.example", "https://social.example/{a}", "https://social.example/a%2Fb",
		"https://social.example//a", "https://social.example/a/../b", "https://social.example/.", "https://social.example/a b", "https://social.example/ü", "http://127.0.0.2", "http://localhost.evil.example", "https://social.example:port", "https://social.example/\n"} {
		add("issuer "+issuer, func(c *authz.Config) { c.Issuer = issuer }, "Issuer")
	}
	for _, prefix := range []string{"oauth2", "/", "/oauth2/", "//oauth2", "/a//b", "/a/../b", "/.", "/{a}", "/a b", "/a%20b", "/a?b", "/a#b", "/ü", "/a\n"} {
		add("prefix "+prefix, func(c *authz.Config) { c.Prefix = prefix }, "Prefix")
	}
	add("account without login", func(c *authz.Config) { c.Account = func(*http.Request) (string, error) { return "", nil } }, "LoginURL")
	add("login without account", func(c *authz.Config) { c.LoginURL = "/login" }, "Account")
	for _, login := range []string{"login", "//evil.example/login", "http://social.example/login", "javascript:x", "/%zz", "?x"} {
		add("login "+login, func(c *authz.Config) {
			c.Account, c.LoginURL = func(*http.Request) (string, error) { return "", nil }, login
		}, "LoginURL")
	}
	add("no permit", func(c *authz.Config) { c.Permit = nil }, "Permit")
	add("store without key", func(c *authz.Config) { c.Store = store.NewMemory() }, "Key is required")
	add("short key", func(c *authz.Config) { c.Key = grant.NewSecret("short") }, "Key", "32")
	add("short sealing key", func(c *authz.Config) { c.Sealing = []grant.Secret{grant.NewSecret("short")} }, "Sealing[0]", "32")
	add("negative ledger", func(c *authz.Config) { c.KeepLedger = -1 }, "KeepLedger")
	for _, host := range []string{"", "http://127.0.0.1", "*", "127.0.0.1/8", "host:0", "host:x"} {
		add("allow "+host, func(c *authz.Config) { c.AllowWebhooksTo = []string{"ok.example", host} }, "AllowWebhooksTo")
	}
	app := func(name string, f func(*authz.App), says ...string) {
		add("app "+name, func(c *authz.Config) { f(&c.Apps[0]) }, says...)
	}
	for _, id := range []string{"", "a b", "a/b", "ü", strings.Repeat("a", 65)} {
		app("id "+id, func(a *authz.App) { a.ID = id }, "app", "ID")
	}
	app("twice", func(a *authz.App) { a.ID = "pollbot" }, `"pollbot"`, "twice")
	for _, secret := range []string{"", "short", strings.Repeat("x", 257), "not\x00text, is it", "neither \xff is this"} {
		app("secret "+secret, func(a *authz.App) { a.Secret = grant.NewSecret(secret) }, `"bookbot"`, "Secret")
	}
	app("action", func(a *authz.App) { a.Actions = append(a.Actions, "world.rule") }, `"bookbot"`, "world.rule")
	for _, hook := range []string{"http://bookbot.example/hook", "https://127.0.0.1/", "https://", "bookbot.example", "https://a:b@bookbot.example/", "https://bookbot.example:22/", "https://bookbot.example/#x"} {
		app("webhook "+hook, func(a *authz.App) { a.Webhook = hook }, `"bookbot"`, "Webhook")
	}
	for n, key := range []string{"whsec_", "whsec_c2hvcnQ=", "secret", "whsec_not base64", webhook.NewSigningKey().Reveal(), webhook.NewSigningKey().Public().Reveal()} {
		app(fmt.Sprintf("webhook secret %d", n), func(a *authz.App) { a.WebhookSecret = grant.NewSecret(key) }, `"bookbot"`, "WebhookSecret")
	}
	for _, uri := range []string{"", "http://bookbot.example/cb", "/cb", "https://bookbot.example/cb#x", "https://bookbot.example/cb#", "javascript:alert(1)", "https://a:b@bookbot.example/", "https://bookbot.example/a b", "https://bookbot.example/ü",
		"https://bookbot.example/cb?code=x", "https://bookbot.example/cb?x=1&iss=x", "https://bookbot.example/cb?x=%zz", "https://bookbot.example/cb?a;b"} {
		app("redirect "+uri, func(a *authz.App) { a.RedirectURIs = []string{"https://ok.example/", uri} }, `"bookbot"`, "RedirectURIs")
	}
	trigger := func(name string, f func(*grant.Trigger), says ...string) {
		add("trigger "+name, func(c *authz.Config) { f(&c.Triggers[0]) }, says...)
	}
	trigger("app", func(tr *grant.Trigger) { tr.App = "nobody" }, "book", "nobody")
	trigger("in", func(tr *grant.Trigger) { tr.In = "group" }, "book", "in")
	trigger("allow", func(tr *grant.Trigger) { tr.Allow = []string{"member.read"} }, "book", "allow", "member.read")
	trigger("for", func(tr *grant.Trigger) { tr.For = 8 * 24 * time.Hour }, "book", "for")
	trigger("uses", func(tr *grant.Trigger) { tr.Uses = -2 }, "book", "uses")
	trigger("redeem_within", func(tr *grant.Trigger) { tr.RedeemWithin = 2 * time.Hour }, "book", "redeem_within")
	trigger("redirect too long", func(tr *grant.Trigger) { tr.Deliver, tr.RedeemWithin = grant.Redirect, 61*time.Second }, "book", "redeem_within")
	trigger("deliver", func(tr *grant.Trigger) { tr.Deliver = "pigeon" }, "book", "deliver", "pigeon")
	trigger("redirect without URI", func(tr *grant.Trigger) { tr.App, tr.Deliver = "pollbot", grant.Redirect }, "book", "deliver", "pollbot", "redirect URI")
	trigger("link without URI", func(tr *grant.Trigger) { tr.App, tr.On = "pollbot", grant.LinkOpen }, "book", "deliver", "pollbot", "redirect URI")
	trigger("push without webhook", func(tr *grant.Trigger) { tr.App, tr.Deliver = "pollbot", grant.Push }, "book", "deliver", "pollbot", "webhook")
	add("trigger twice", func(c *authz.Config) { c.Triggers = append(c.Triggers, c.Triggers[0]) }, "book", "twice")
	return out
}

func TestConfigFaults(t *testing.T) {
	_, err := authz.New(configured())
	require.NoError(t, err)
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			c := configured()
			f.spoil(&c)
			az, err := authz.New(c)
			require.Nil(t, az)
			require.Error(t, err)
			for _, words := range f.says {
				require.ErrorContains(t, err, words)
			}
			require.NotContains(t, err.Error(), "long enough", "a secret")
			for _, a := range c.Apps {
				for _, s := range []string{a.Secret.Reveal(), a.WebhookSecret.Reveal()} {
					if len(s) > 8 {
						require.NotContains(t, err.Error(), s)
					}
				}
			}
		})
	}
	for _, f := range []func(*authz.Config){
		func(c *authz.Config) { c.Issuer = "https://social.example:8443/a/b-c" },
		func(c *authz.Config) { c.Issuer = "http://localhost:8080" },
		func(c *authz.Config) { c.Issuer = "http://127.0.0.1" },
		func(c *authz.Config) { c.Issuer = "http://[::1]:80/x" },
		func(c *authz.Config) { c.Prefix = "/auth/v1.0" },
		func(c *authz.Config) { c.Apps[0].WebhookSecret = grant.NewSecret(webhook.NewSecret().Reveal()) },
		func(c *authz.Config) {
			c.Apps[0].RedirectURIs = []string{"http://127.0.0.1:1234/cb?x=1", "https://bookbot.example"}
		},
		func(c *authz.Config) { c.Apps[0].Secret = grant.NewSecret("日本 : + % & =") },
		func(c *authz.Config) {
			c.Apps = append(c.Apps, authz.App{ID: "rs", Secret: grant.NewSecret("long enough"), Introspect: true})
		},
		func(c *authz.Config) { c.Apps, c.Triggers = nil, nil },
		func(c *authz.Config) { c.Store, c.Key = store.NewMemory(), grant.NewSecret(strings.Repeat("k", 32)) },
		func(c *authz.Config) { c.Store, c.InsecureKeyInStore = store.NewMemory(), true },
		func(c *authz.Config) { c.InsecureKeyInStore = true },
	} {
		c := configured()
		f(&c)
		_, err := authz.New(c)
		require.NoError(t, err)
	}
}

// Everything that is wrong is said at once.
func TestConfigFaultsAtOnce(t *testing.T) {
	mem := &spyStore{Store: store.NewMemory()}
	_, err := authz.New(authz.Config{
		Issuer: "http://social.example", Prefix: "/", Store: mem, InsecureKeyInStore: true, KeepLedger: -1, AllowWebhooksTo: []string{"*"},
		Apps: []authz.App{
			{ID: "one", Secret: grant.NewSecret("x"), WebhookSecret: grant.NewSecret("x"), RedirectURIs: []string{"/cb"}, Actions: []string{"fly"}},
			{ID: "a b", Secret: grant.NewSecret("\xff\xff\xff\xff\xff\xff\xff\xff"), Actions: []string{"message.write"}},
			{ID: "two", Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}},
			{ID: "two", Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}},
		},
		Triggers: []grant.Trigger{
			{ID: "t1", App: "two", On: grant.Mention, In: "nowhere", Allow: []string{"message.write"}, Uses: -7},
			{ID: "t2", App: "two", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Deliver: grant.Push},
			{ID: "t3", App: "three", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}},
		},
	})
	require.Error(t, err)
	text := err.Error()
	for _, words := range []string{"Issuer", "Prefix", "Permit", "KeepLedger", "AllowWebhooksTo", `"one": Secret`, `"one": WebhookSecret`, `"one": RedirectURIs`, `"fly"`,
		`"a b": an ID`, `"a b": Secret`, `"two" is there twice`, "t1", "nowhere", "-7", `"t2": deliver`, "t3", "three"} {
		require.Contains(t, text, words)
	}
	require.ErrorIs(t, err, grant.ErrInvalid)
	require.Zero(t, mem.calls.Load(), "the store is not touched before all is well")
	lines := strings.Split(text, "\n")
	seen := map[string]bool{}
	for _, line := range lines {
		require.False(t, seen[line], "twice: %s", line)
		seen[line] = true
	}
}

// Nothing of the Config is shared with the Server afterwards.
func TestConfigIsCopied(t *testing.T) {
	c := configured()
	c.Triggers[0].Deliver = grant.Redirect
	az, err := authz.New(c)
	require.NoError(t, err)
	c.Apps[0].Actions[0], c.Apps[0].RedirectURIs[0], c.Triggers[0].Allow[0] = "file.write", "https://evil.example/", "file.write"
	issued, err := az.Emit(t.Context(), bubbleMention("m1"))
	require.NoError(t, err)
	require.Equal(t, []string{"message.write"}, issued[0].Actions)
	require.True(t, strings.HasPrefix(issued[0].Link(), "https://bookbot.example/cb?"), issued[0].Link())
}

func TestInsecureKeyInStore(t *testing.T) {
	mem := store.NewMemory()
	config := func() authz.Config {
		c := configured()
		c.Store, c.InsecureKeyInStore = mem, true
		c.Triggers[0].Deliver = grant.Poll
		return c
	}
	keys := at64(func(int) string {
		az, err := authz.New(config())
		if err != nil {
			t.Error(err)
			return ""
		}
		return az.WebhookKey("bookbot") + az.WebhookSecret("bookbot").Reveal()
	})
	require.Len(t, keys, 1, "one key for all who share the store")

	one, err := authz.New(config())
	require.NoError(t, err)
	two, err := authz.New(config())
	require.NoError(t, err)
	issued, err := one.Emit(t.Context(), bubbleMention("m1"))
	require.NoError(t, err)
	_, _, err = two.Engine().Redeem(t.Context(), "bookbot", issued[0].Code)
	require.NoError(t, err)

	// A key of one's own wins, and other stores have other keys.
	c := config()
	c.Key = grant.NewSecret(strings.Repeat("k", 32))
	own, err := authz.New(c)
	require.NoError(t, err)
	require.NotEqual(t, one.WebhookKey("bookbot"), own.WebhookKey("bookbot"))
	mem = store.NewMemory()
	other, err := authz.New(config())
	require.NoError(t, err)
	require.NotEqual(t, one.WebhookKey("bookbot"), other.WebhookKey("bookbot"))

	// A store that fails, or that has something else there, is an error and no other key.
	broken := &spyStore{Store: store.NewMemory()}
	broken.fail(errors.New("disk on fire"))
	c = config()
	c.Store = broken
	_, err = authz.New(c)
	require.ErrorContains(t, err, "disk on fire")
	damaged := store.NewMemory()
	_, err = damaged.Apply(t.Context(), time.Now(), []store.Op{store.Put(store.Record{Kind: "key", ID: "config.root", Data: []byte("short")})})
	require.NoError(t, err)
	c.Store = damaged
	_, err = authz.New(c)
	require.ErrorContains(t, err, "not a key")
}
