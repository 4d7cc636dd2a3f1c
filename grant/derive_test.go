package grant_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

var (
	thread = scope.MustDomain("group:42/thread:7")
	read   = scope.MustParse("group:42/message.read")
)

// delegating is a trigger whose tokens weather may exchange, with five uses to write and read.
func delegating(c *grant.Config) {
	t := &c.Triggers[0]
	t.Allow, t.Uses, t.Delegates = []string{"message.write", "message.read"}, 5, []string{"weather"}
}

// derive exchanges a token.
func (w *world) derive(app, token string, want grant.Grant) (*grant.Grant, string) {
	w.t.Helper()
	g, child, err := w.Derive(ctx, app, grant.NewSecret(token), want)
	require.NoError(w.t, err)
	return g, child.Reveal()
}

func TestDerive(t *testing.T) {
	w := newWorld(t, delegating)
	root := w.emit(mention("m1"))
	token := w.redeem(root)
	w.clock.advance(time.Minute)
	require.NoError(t, w.Look(ctx))
	w.store.reset()
	g, child := w.derive("weather", token, grant.Grant{Domain: thread, Actions: []string{"message.write"}, For: 2 * time.Minute, Uses: 2})
	require.Equal(t, map[string]int{"get": 2, "apply": 1}, w.store.calls, "one write, after two looks")
	want := exported(root)
	now := start.Add(time.Minute)
	want.ID, want.App, want.State, want.Domain, want.Actions, want.Code = g.ID, "weather", "redeemed", thread, []string{"message.write"}, grant.Secret{}
	want.IssuedAt, want.RedeemBy, want.For, want.NotAfter, want.Uses = now, time.Time{}, 2*time.Minute, now.Add(2*time.Minute), 2
	require.Equal(t, want, exported(*g))
	require.NotEqual(t, root.ID, g.ID)
	require.Equal(t, root.ID, g.Parent)
	require.Equal(t, []string{"weather", "bookbot"}, g.Actors())
	require.Equal(t, []string{"bookbot"}, root.Actors())
	found, err := w.Grants(ctx, "zhang-san", "weather", false)
	require.NoError(t, err)
	require.Equal(t, want, exported(found[0]), "what is found later is what was returned")
	require.Equal(t, root.ID, found[0].Parent)
	require.Equal(t, g.Actors(), found[0].Actors())

	w.store.reset()
	in := scope.MustParse("group:42/thread:7/message.write")
	d, err := w.Use(ctx, child, in)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"apply": 1}, w.store.calls)
	require.Equal(t, grant.Delegation{Account: "zhang-san", App: "weather", Domain: thread, Scope: in, Grant: g.ID, Trigger: "mention",
		Operation: grant.Mention, Event: "m1", IssuedAt: now, NotAfter: now.Add(2 * time.Minute), Uses: 2, Left: 1}, visible(d))
	require.Equal(t, []string{"weather", "bookbot"}, d.Actors())
	require.True(t, d.Spent())
	require.Equal(t, 4, w.left(token))
	d, err = w.Use(ctx, token, write)
	require.NoError(t, err)
	require.Equal(t, []string{"bookbot"}, d.Actors())

	// What is not said is as the token has it: all that is left of it.
	w.clock.advance(time.Second)
	g, own := w.derive("bookbot", token, grant.Grant{})
	require.Equal(t, group, g.Domain)
	require.Equal(t, []string{"message.read", "message.write"}, g.Actions)
	require.Equal(t, 3, g.Uses)
	require.Equal(t, start.Add(10*time.Minute), g.NotAfter)
	require.Equal(t, []string{"bookbot"}, g.Actors(), "who derives for itself is one actor")
	require.Equal(t, 3, w.left(own))

	// The one and the other app know the account by names of their own.
	require.NotEqual(t, w.Name("weather", "zhang-san"), w.Name("bookbot", "zhang-san"))
}

// A resource server in another process hears which apps act, and by which key.
func TestDerivedDelegationJSON(t *testing.T) {
	w := newWorld(t, delegating)
	_, token := w.derive("weather", w.bind(w.emit(mention("m1")), thumbprint), grant.Grant{})
	d, err := w.UseBound(ctx, token, w.holds(thumbprint, "1"), writes)
	require.NoError(t, err)
	text, err := json.Marshal(d)
	require.NoError(t, err)
	require.Contains(t, string(text), `"actors":["weather","bookbot"],"key":"`+thumbprint+`"`)
	var back grant.Delegation
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, d.Actors(), back.Actors())
	require.Equal(t, thumbprint, back.Key())
	for _, actors := range []string{`["bookbot","weather"]`, `[""]`, `["weather",""]`} {
		bad := strings.Replace(string(text), `["weather","bookbot"]`, actors, 1)
		require.ErrorIs(t, json.Unmarshal([]byte(bad), &back), grant.ErrInvalid)
	}
	text, err = json.Marshal(visible(d))
	require.NoError(t, err)
	require.NotContains(t, string(text), "actors")
}

// SpendOnce of a derived token: once for a key, whatever was lost, and what is left is the least.
func TestDerivedSpendOnce(t *testing.T) {
	w := newWorld(t, delegating)
	token := w.token("m1")
	_, child := w.derive("weather", token, grant.Grant{})
	_, err := w.Use(ctx, token, write)
	require.NoError(t, err)
	for i := range 3 {
		d, err := w.Prepare(ctx, child, write)
		require.NoError(t, err)
		again, err := d.SpendOnce(ctx, "key", [32]byte{})
		require.NoError(t, err)
		require.Equal(t, i > 0, again)
		require.Equal(t, 3, d.Left)
	}
}

// P1: a derived token is of the account and the cause of the one that was redeemed, and of no other.
func TestP1CauseOfDerived(t *testing.T) {
	w := newWorld(t, delegating)
	token := w.token("m1")
	_, child := w.derive("weather", token, grant.Grant{
		Account: "li-si", App: "bookbot", Trigger: "other", Event: grant.Event{ID: "m2", Account: "li-si"}, Deliver: grant.Push, ID: "x", Parent: "y", State: "issued"})
	_, grandchild := w.derive("weather", child, grant.Grant{})
	for _, token := range []string{child, grandchild} {
		d, err := w.Use(ctx, token, write)
		require.NoError(t, err)
		require.Equal(t, []string{"zhang-san", "weather", "mention", "m1"}, []string{d.Account, d.App, d.Trigger, d.Event})
	}
	for _, r := range w.store.everything(t) {
		require.Equal(t, "zhang-san", r.Owner, "%s %s", r.Kind, r.ID)
	}
	_, _, err := w.Derive(ctx, "bookbot", grant.NewSecret("bhst_forged"), grant.Grant{})
	require.ErrorIs(t, err, grant.ErrUnknown)
	_, _, err = w.Derive(ctx, "bookbot", w.emit(mention("m2")).Code, grant.Grant{})
	require.ErrorIs(t, err, grant.ErrUnknown, "a code is no token")
}

// P2: deriving makes no second grant of a cause: all that is derived shares what that granted.
func TestP2OncePerCauseWithDerived(t *testing.T) {
	w := newWorld(t, delegating)
	g := w.emit(mention("m1"))
	token := w.redeem(g)
	var children []string
	for range 3 {
		child, text := w.derive("bookbot", token, grant.Grant{})
		require.NotEqual(t, g.ID, child.ID)
		children = append(children, text)
	}
	again := w.emit(mention("m1"))
	require.Equal(t, g.ID, again.ID)
	require.Equal(t, "redeemed", again.State)
	spent := 0
	for i := range 12 {
		if _, err := w.Use(ctx, children[i%3], write); err == nil {
			spent++
		} else {
			require.ErrorIs(t, err, grant.ErrUsedUp)
		}
	}
	require.Equal(t, 5, spent)
}

// P3: the last use of a token, through two that were derived from it, is one use: on every store, on two engines.
func TestP3CountedThroughChildren(t *testing.T) { stores.Everywhere(t, testP3CountedThroughChildren) }

func testP3CountedThroughChildren(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	t.Run("the last use", func(t *testing.T) {
		for range s.Some(10) {
			w := newWorld(t, func(c *grant.Config) { delegating(c); c.Triggers[0].Uses = 1 })
			nodes := w.nodes()
			token := w.token("m1")
			_, one := w.derive("bookbot", token, grant.Grant{})
			_, two := w.derive("weather", token, grant.Grant{})
			errs := together(64, func(i int) error {
				_, err := nodes[i%2].Use(ctx, []string{one, two}[i/2%2], write)
				return err
			})
			require.Equal(t, 1, winners(t, errs, grant.ErrUsedUp))
			for _, token := range []string{token, one, two} {
				_, err := w.Use(ctx, token, write)
				require.ErrorIs(t, err, grant.ErrUsedUp)
			}
			require.Equal(t, map[string]int{"issued": 1, "redeemed": 1, "derived": 2, "used": 1, "refused": 66}, w.whats("zhang-san"))
		}
	})
	t.Run("of a whole family", func(t *testing.T) {
		for range s.Some(5) {
			w := newWorld(t, func(c *grant.Config) { delegating(c); c.Triggers[0].Uses = 11 })
			nodes := w.nodes()
			token := w.token("m1")
			_, child := w.derive("weather", token, grant.Grant{Uses: 7})
			_, grandchild := w.derive("weather", child, grant.Grant{Uses: 3})
			_, other := w.derive("bookbot", token, grant.Grant{Uses: 2})
			family := []string{token, child, grandchild, other}
			var used [4]atomic.Int64
			var lefts [11]atomic.Int32
			errs := together(64, func(i int) error {
				d, err := nodes[i%2].Use(ctx, family[i/2%4], write)
				if err == nil {
					used[i/2%4].Add(1)
					if i/2%4 == 0 {
						lefts[d.Left].Add(1)
					}
				}
				return err
			})
			require.Equal(t, 11, winners(t, errs, grant.ErrUsedUp))
			require.LessOrEqual(t, used[2].Load(), int64(3))
			require.LessOrEqual(t, used[1].Load()+used[2].Load(), int64(7))
			require.LessOrEqual(t, used[3].Load(), int64(2))
			for i := range lefts {
				require.LessOrEqual(t, lefts[i].Load(), int32(1), "each use knows its number")
			}
		}
	})
	t.Run("what is left is the least", func(t *testing.T) {
		w := newWorld(t, delegating)
		token := w.token("m1")
		_, child := w.derive("weather", token, grant.Grant{Uses: 4})
		_, grandchild := w.derive("weather", child, grant.Grant{Uses: 2})
		d, err := w.Use(ctx, grandchild, write)
		require.NoError(t, err)
		require.Equal(t, 1, d.Left, "its own")
		for range 3 {
			d, err = w.Use(ctx, token, write)
			require.NoError(t, err)
		}
		require.Equal(t, 1, d.Left)
		require.Equal(t, 1, w.left(child), "the token's, where the child has three")
		d, err = w.Use(ctx, child, write)
		require.NoError(t, err)
		require.Zero(t, d.Left)
		_, err = w.Use(ctx, grandchild, write)
		require.ErrorIs(t, err, grant.ErrUsedUp)
		_, _, err = w.Derive(ctx, "weather", grant.NewSecret(grandchild), grant.Grant{})
		require.ErrorIs(t, err, grant.ErrUsedUp)
		_, err = w.Inspect(ctx, grant.NewSecret(grandchild))
		require.ErrorIs(t, err, grant.ErrUsedUp)
	})
	t.Run("in the caller's hands", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) { delegating(c); c.Triggers[0].Uses = 1 })
		nodes := w.nodes()
		token := w.token("m1")
		_, one := w.derive("bookbot", token, grant.Grant{})
		_, two := w.derive("weather", token, grant.Grant{})
		errs := together(64, func(i int) error {
			d, err := nodes[i%2].Prepare(ctx, []string{one, two}[i/2%2], write)
			if err == nil {
				err = d.Spend(ctx, nil)
			}
			return err
		})
		require.Equal(t, 1, winners(t, errs, grant.ErrUsedUp))
	})
	t.Run("64 derived at most", func(t *testing.T) {
		w := newWorld(t, delegating)
		nodes := w.nodes()
		token := w.token("m1")
		_, child := w.derive("weather", token, grant.Grant{})
		errs := together(80, func(i int) error {
			_, _, err := nodes[i%2].Derive(ctx, "weather", grant.NewSecret([]string{token, child}[i/2%2]), grant.Grant{})
			return err
		})
		require.Equal(t, 63, winners(t, errs, grant.ErrLimited))
		require.Len(t, w.store.ofKind(t, "token"), 65)
		require.Equal(t, 5, w.left(token), "it cost no use")
		require.Equal(t, 17, w.whats("zhang-san")["refused"])
	})
	t.Run("lost answers", func(t *testing.T) {
		w := newWorld(t, delegating)
		token := w.token("m1")
		_, child := w.derive("weather", token, grant.Grant{Uses: 4})
		lose := func(at int) {
			w.store.reset()
			w.store.after = func(n int, call string) error {
				if n == at {
					return errStore
				}
				return nil
			}
		}
		lose(1)
		d, err := w.Use(ctx, child, write)
		require.NoError(t, err, "it was this use")
		require.Equal(t, 3, d.Left)
		lose(3)
		_, _, err = w.Derive(ctx, "weather", grant.NewSecret(child), grant.Grant{})
		require.ErrorIs(t, err, errStore)
		w.store.reset()
		require.Equal(t, 4, w.left(token))
	})
}

// Costs of actions are spent all the way up.
func TestDerivedCosts(t *testing.T) {
	catalog, err := scope.NewCatalog(
		scope.Action{Name: "message.write", Words: map[string]string{"en": "w"}, Cost: 2},
		scope.Action{Name: "message.read", Words: map[string]string{"en": "r"}, Cost: scope.Free})
	require.NoError(t, err)
	w := newWorld(t, func(c *grant.Config) {
		delegating(c)
		c.Catalog, c.Apps[0].Actions = catalog, c.Apps[1].Actions
	})
	token := w.token("m1")
	_, child := w.derive("weather", token, grant.Grant{Uses: 3})
	for _, step := range []struct {
		want        scope.Scope
		left, above int
		err         error
	}{{read, 3, 5, nil}, {write, 1, 3, nil}, {write, 1, 3, grant.ErrUsedUp}, {read, 1, 3, nil}} {
		d, err := w.Use(ctx, child, step.want)
		require.ErrorIs(t, err, step.err)
		if err == nil {
			require.Equal(t, step.left, d.Left)
		}
		require.Equal(t, step.above, w.left(token))
	}
}

// P4: a child is never more than what it was derived from, and what is too much is an error.
func TestP4NarrowDerived(t *testing.T) { stores.Each(t, testP4NarrowDerived) }

func testP4NarrowDerived(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	w := newWorld(t, delegating)
	w.config.Apps[1].Actions = []string{"message.write", "member.read"}
	token := w.token("m1")
	w.Engine = w.another()
	for name, c := range map[string]struct {
		app  string
		want grant.Grant
		err  error
	}{
		"above":                     {"bookbot", grant.Grant{Domain: scope.MustDomain("server:1")}, scope.ErrWiden},
		"beside":                    {"bookbot", grant.Grant{Domain: scope.MustDomain("group:4")}, scope.ErrWiden},
		"beside, alike":             {"bookbot", grant.Grant{Domain: scope.MustDomain("group:421")}, scope.ErrWiden},
		"another action":            {"bookbot", grant.Grant{Actions: []string{"member.read"}}, scope.ErrWiden},
		"one action more":           {"bookbot", grant.Grant{Actions: []string{"message.write", "member.read"}}, scope.ErrWiden},
		"no action":                 {"bookbot", grant.Grant{Actions: []string{""}}, scope.ErrWiden},
		"two in one":                {"bookbot", grant.Grant{Actions: []string{"message.read message.write"}}, scope.ErrWiden},
		"twice":                     {"bookbot", grant.Grant{Actions: []string{"message.read", "message.read"}}, grant.ErrInvalid},
		"not the delegate's":        {"weather", grant.Grant{Actions: []string{"message.read"}}, scope.ErrWiden},
		"the delegate's alone":      {"weather", grant.Grant{Actions: []string{"member.read"}}, scope.ErrWiden},
		"longer":                    {"bookbot", grant.Grant{For: 10*time.Minute + time.Microsecond}, scope.ErrWiden},
		"shorter than can be":       {"bookbot", grant.Grant{For: time.Second - 1}, grant.ErrInvalid},
		"backwards":                 {"bookbot", grant.Grant{For: -time.Minute}, grant.ErrInvalid},
		"more often":                {"bookbot", grant.Grant{Uses: 6}, scope.ErrWiden},
		"as often as one likes":     {"bookbot", grant.Grant{Uses: grant.Unlimited}, scope.ErrWiden},
		"a number that is no count": {"bookbot", grant.Grant{Uses: -2}, grant.ErrInvalid},
	} {
		g, child, err := w.Derive(ctx, c.app, grant.NewSecret(token), c.want)
		require.ErrorIs(t, err, c.err, name)
		require.Nil(t, g, name)
		require.True(t, child.IsZero(), name)
	}
	require.Len(t, w.store.ofKind(t, "token"), 1)
	require.Equal(t, 12, w.whats("zhang-san")["refused"], "what was too much is on the record")

	g, child := w.derive("weather", token, grant.Grant{Domain: thread})
	require.Equal(t, []string{"message.write"}, g.Actions, "what both are registered for")
	for want, reason := range map[string]error{
		"group:42/message.write":          scope.ErrWrongDomain,
		"group:42/thread:8/message.write": scope.ErrWrongDomain,
		"group:42/thread:7/message.read":  scope.ErrWrongAction,
	} {
		_, err := w.Use(ctx, child, scope.MustParse(want))
		require.ErrorIs(t, err, reason, want)
	}
	in := scope.MustParse("group:42/thread:7/message.write")
	_, err := w.Use(ctx, child, in)
	require.NoError(t, err)
	_, _, err = w.Derive(ctx, "weather", grant.NewSecret(child), grant.Grant{Domain: group})
	require.ErrorIs(t, err, scope.ErrWiden, "nor as much again as its parent")

	// All that may have changed is asked of every app on the way, at each use.
	var asked []grant.Access
	w.setPermit(func(_ context.Context, a grant.Access) error { asked = append(asked, a); return nil })
	_, err = w.Use(ctx, child, in)
	require.NoError(t, err)
	root, err := w.Grants(ctx, "zhang-san", "bookbot", false)
	require.NoError(t, err)
	require.Equal(t, []grant.Access{{Account: "zhang-san", App: "weather", Scope: in, Grant: g.ID}, {Account: "zhang-san", App: "bookbot", Scope: in, Grant: root[0].ID}}, asked)
	for _, app := range []string{"weather", "bookbot"} {
		w.setPermit(func(_ context.Context, a grant.Access) error {
			if a.App == app {
				return grant.ErrDenied
			}
			return nil
		})
		_, err = w.Use(ctx, child, in)
		require.ErrorIs(t, err, grant.ErrDenied, app)
		_, err = w.Inspect(ctx, grant.NewSecret(child))
		require.ErrorIs(t, err, grant.ErrDenied, app)
		for _, actions := range [][]string{nil, {"message.write"}} {
			_, _, err = w.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{Actions: actions})
			require.ErrorIs(t, err, grant.ErrDenied, app)
		}
	}
	w.setPermit(func(context.Context, grant.Access) error { return errStore })
	_, _, err = w.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{})
	require.ErrorIs(t, err, errStore)
	w.setPermit(allow("message.read"))
	g, _ = w.derive("bookbot", token, grant.Grant{})
	require.Equal(t, []string{"message.read"}, g.Actions)
	w.setPermit(nil)
	for i := range w.config.Apps {
		kept := w.config.Apps[i].Actions
		w.config.Apps[i].Actions = []string{"member.read"}
		w.config.Triggers = nil
		_, err = w.another().Use(ctx, child, in)
		require.ErrorIs(t, err, grant.ErrDenied, w.config.Apps[i].ID)
		w.config.Apps[i].Actions = kept
	}

	// It is over when its time is, and never after its parent's.
	g, short := w.derive("bookbot", token, grant.Grant{For: time.Minute})
	w.clock.advance(time.Minute)
	_, err = w.Use(ctx, short, write)
	require.ErrorIs(t, err, grant.ErrExpired)
	found, err := w.Grants(ctx, "zhang-san", "bookbot", true)
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(found, func(f grant.Grant) bool { return f.ID == g.ID && f.State == "expired" }))
	w.clock.advance(9 * time.Minute)
	for _, token := range []string{token, child} {
		_, err = w.Use(ctx, token, in)
		require.ErrorIs(t, err, grant.ErrExpired)
		_, _, err = w.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{})
		require.ErrorIs(t, err, grant.ErrExpired)
	}
}

// Who may exchange a token: its own app, and those that the trigger named when it was issued. To all others it is what a
// forgery is, and costs what a forgery costs.
func TestDeriveForWhom(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		delegating(c)
		c.Apps = append(c.Apps, grant.App{ID: "third", Actions: []string{"message.write"}})
	})
	token := w.token("m1")
	_, child := w.derive("weather", token, grant.Grant{})
	w.store.reset()
	for _, c := range []struct{ app, token string }{
		{"third", token}, {"", token}, {"nobody", token}, {"third", child}, {"weather ", token}, {"bookbot", child}, {"bookbot", "bhst_" + token[6:]},
	} {
		g, secret, err := w.Derive(ctx, c.app, grant.NewSecret(c.token), grant.Grant{Domain: scope.MustDomain("group:1")})
		require.ErrorIs(t, err, grant.ErrUnknown, c.app)
		require.Empty(t, grant.Reason(err), c.app)
		require.Nil(t, g)
		require.True(t, secret.IsZero())
	}
	require.Zero(t, w.store.total(), "without a look into the store")
	require.Equal(t, 6, w.whats("zhang-san")["refused"], "real tokens in the wrong hands are on the record")

	// The trigger is fixed at issue.
	w.config.Triggers = slices.Clone(w.config.Triggers)
	w.config.Triggers[0].Delegates = []string{"third"}
	w.Engine = w.another()
	w.derive("weather", token, grant.Grant{})
	_, _, err := w.Derive(ctx, "third", grant.NewSecret(token), grant.Grant{})
	require.ErrorIs(t, err, grant.ErrUnknown)
	later := w.token("m2")
	w.derive("third", later, grant.Grant{})
	_, _, err = w.Derive(ctx, "weather", grant.NewSecret(later), grant.Grant{})
	require.ErrorIs(t, err, grant.ErrUnknown)
}

// P5: what is derived dies with all that it was derived from, whatever ends that, and ends none of it.
func TestP5RevokeDerived(t *testing.T) { stores.Each(t, testP5RevokeDerived) }

func testP5RevokeDerived(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	shared := newWorld(t, delegating)
	nodes := shared.nodes()
	type family struct{ ids, tokens map[string]string }
	all := []string{"root", "child", "grandchild", "other"}
	owner := map[string]string{"root": "bookbot", "child": "weather", "grandchild": "weather", "other": "bookbot"}
	revoke := func(name string) func(*world, string, family) error {
		return func(w *world, account string, f family) error { return w.Revoke(ctx, account, f.ids[name]) }
	}
	revokeApp := func(app string, in scope.Domain) func(*world, string, family) error {
		return func(w *world, account string, _ family) error { return w.RevokeApp(ctx, account, app, in) }
	}
	revokeToken := func(name string) func(*world, string, family) error {
		return func(w *world, _ string, f family) error {
			return w.RevokeToken(ctx, owner[name], grant.NewSecret(f.tokens[name]))
		}
	}
	for name, c := range map[string]struct {
		revoke func(*world, string, family) error
		alive  []string
	}{
		"the root":          {revoke("root"), nil},
		"a child":           {revoke("child"), []string{"root", "other"}},
		"a grandchild":      {revoke("grandchild"), []string{"root", "child", "other"}},
		"the app here":      {revokeApp("bookbot", thread), nil},
		"the delegate here": {revokeApp("weather", group), []string{"root", "other"}},
		"the app elsewhere": {revokeApp("bookbot", scope.MustDomain("group:1")), all},
		"the account":       {func(w *world, account string, _ family) error { return w.RevokeAccount(ctx, account) }, nil},
		"the root's token":  {revokeToken("root"), nil},
		"the child's token": {revokeToken("child"), []string{"root", "other"}},
		"another's token": {func(w *world, _ string, f family) error {
			for app, name := range map[string]string{"bookbot": "child", "weather": "root"} {
				if err := w.RevokeToken(ctx, app, grant.NewSecret(f.tokens[name])); !errors.Is(err, grant.ErrUnknown) {
					return fmt.Errorf("%s revoked the %s: %v", app, name, err)
				}
			}
			return nil
		}, all},
	} {
		t.Run(name, func(t *testing.T) {
			w := shared
			ev := mention("m1")
			ev.Account = name
			root := w.emit(ev)
			f := family{map[string]string{"root": root.ID}, map[string]string{"root": w.redeem(root)}}
			for _, step := range []struct{ name, of string }{{"child", "root"}, {"grandchild", "child"}, {"other", "root"}} {
				g, token := w.derive(owner[step.name], f.tokens[step.of], grant.Grant{})
				f.ids[step.name], f.tokens[step.name] = g.ID, token
			}
			w.store.reset()
			require.NoError(t, c.revoke(w, name, f))
			require.LessOrEqual(t, w.store.count("apply"), 1, "one write")
			found, err := w.Grants(ctx, name, "", false)
			require.NoError(t, err)
			for who, token := range f.tokens {
				_, err := nodes[1].Use(ctx, token, write)
				_, err2 := nodes[1].Inspect(ctx, grant.NewSecret(token))
				alive := slices.Contains(c.alive, who)
				require.Equal(t, alive, slices.ContainsFunc(found, func(g grant.Grant) bool { return g.ID == f.ids[who] }), who)
				if alive {
					require.NoError(t, errors.Join(err, err2), who)
					continue
				}
				require.ErrorIs(t, err, grant.ErrRevoked, who)
				require.ErrorIs(t, err2, grant.ErrRevoked, who)
				_, _, err = nodes[1].Derive(ctx, owner[who], grant.NewSecret(token), grant.Grant{})
				require.ErrorIs(t, err, grant.ErrRevoked, who)
			}
		})
	}
	t.Run("while it is derived", func(t *testing.T) {
		w := newWorld(t, delegating)
		root := w.emit(mention("m1"))
		token := w.redeem(root)
		w.store.hook = func() { require.NoError(t, w.Revoke(ctx, "zhang-san", root.ID)) }
		_, child, err := w.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{})
		require.ErrorIs(t, err, grant.ErrRevoked)
		require.True(t, child.IsZero())
		require.Len(t, w.store.ofKind(t, "token"), 1)
	})
	t.Run("the delegate before", func(t *testing.T) {
		w := newWorld(t, delegating)
		token := w.token("m1")
		for range 3 {
			require.NoError(t, w.RevokeApp(ctx, "zhang-san", "weather", group))
		}
		for _, e := range w.nodes() {
			g, child, err := e.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{})
			require.NoError(t, err, "what is granted afterwards lives")
			_, err = e.Use(ctx, child.Reveal(), write)
			require.NoError(t, err)
			require.NoError(t, e.Revoke(ctx, "zhang-san", g.ID))
		}
	})
}

// P5: what is suspended or removed takes what was derived from its tokens along, also when it comes back.
func TestP5SuspendDerived(t *testing.T) {
	change := func(w *world, edit func(*grant.Config)) {
		t.Helper()
		_, err := w.Change(ctx, "li-si", func(c *grant.Config) error { edit(c); return nil })
		require.NoError(t, err)
	}
	w := newWorld(t, func(c *grant.Config) { delegating(c); c.Store = store.NewMemory() }) // where a change holds at once
	token := w.token("m1")
	g, child := w.derive("weather", token, grant.Grant{})
	_, grandchild := w.derive("weather", child, grant.Grant{})
	state := func() string {
		found, err := w.Grants(ctx, "zhang-san", "weather", true)
		require.NoError(t, err)
		for _, f := range found {
			if f.ID == g.ID {
				return f.State
			}
		}
		return ""
	}
	for name, set := range map[string]func(c *grant.Config, on bool){
		"app":      func(c *grant.Config, on bool) { c.Apps[0].Suspended = on },
		"delegate": func(c *grant.Config, on bool) { c.Apps[1].Suspended = on },
		"trigger":  func(c *grant.Config, on bool) { c.Triggers[0].Suspended = on },
	} {
		change(w, func(c *grant.Config) { set(c, true) })
		require.Equal(t, "suspended", state(), name)
		for _, token := range []string{child, grandchild} {
			_, err := w.Use(ctx, token, write)
			require.ErrorIs(t, err, grant.ErrRevoked, name)
			_, _, err = w.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{})
			require.ErrorIs(t, err, grant.ErrRevoked, name)
		}
		_, _, err := w.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{})
		require.ErrorIs(t, err, grant.ErrRevoked, name)
		change(w, func(c *grant.Config) { set(c, false) })
		require.Equal(t, "redeemed", state(), name)
		_, err = w.Use(ctx, grandchild, write)
		require.NoError(t, err, name)
	}
	_, err := w.Change(ctx, "li-si", func(c *grant.Config) error { c.Apps = c.Apps[:1]; return nil })
	require.ErrorIs(t, err, grant.ErrInvalid)
	require.ErrorContains(t, err, `delegates: no app has the ID "weather"`)
	// The app goes and comes back: what it was granted stays dead, and so does what was derived from that.
	change(w, func(c *grant.Config) { c.Apps, c.Triggers = c.Apps[1:], nil })
	change(w, func(c *grant.Config) { c.Apps = append(c.Apps, bookbot()) })
	w.clock.advance(time.Second)
	require.Equal(t, "revoked", state())
	for _, token := range []string{child, grandchild} {
		_, err := w.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked)
	}
	for _, app := range []string{"bookbot", "weather"} {
		_, _, err := w.Derive(ctx, app, grant.NewSecret(token), grant.Grant{})
		require.ErrorIs(t, err, grant.ErrRevoked)
	}
}

// P7: what is done with a derived token triggers nothing; where a trigger chains, it is as deep as what it was derived from.
func TestP7NoLoopsWithDerived(t *testing.T) {
	w := newWorld(t, delegating)
	g, _ := w.derive("weather", w.token("m1"), grant.Grant{})
	ev := mention("m2")
	ev.By = g.ID
	got, err := w.Emit(ctx, ev)
	require.NoError(t, err)
	require.Empty(t, got)

	w = newWorld(t, func(c *grant.Config) { delegating(c); c.Triggers[0].Chain = true })
	by := ""
	for i := range 6 {
		ev := mention(fmt.Sprint("m", i))
		ev.By = by
		got, err := w.Emit(ctx, ev)
		if i > 4 {
			require.ErrorIs(t, err, grant.ErrLimited)
			continue
		}
		require.NoError(t, err)
		child, _ := w.derive("weather", w.redeem(got[0]), grant.Grant{})
		by = child.ID
	}
}

// P8: what is derived is in the ledger in the same write, with both apps; its uses bear its own app's name.
func TestP8OnTheRecordDerived(t *testing.T) {
	var seen []grant.Entry
	w := newWorld(t, func(c *grant.Config) {
		delegating(c)
		c.Observe = func(_ context.Context, e grant.Entry) { seen = append(seen, e) }
	})
	root := w.emit(mention("m1"))
	token := w.redeem(root)
	w.store.reset()
	g, child := w.derive("weather", token, grant.Grant{Actions: []string{"message.write"}, Uses: 2})
	batch := w.store.batches()[0]
	require.True(t, slices.ContainsFunc(batch, func(op store.Op) bool {
		return op.Verb == store.VerbPut && op.Record.Kind == "ledger" && op.Record.App == "weather"
	}))
	_, err := w.Use(ctx, child, write)
	require.NoError(t, err)
	entries := w.ledger("zhang-san")
	derived := grant.Entry{ID: entries[1].ID, At: start, What: "derived", Account: "zhang-san", App: "weather", Grant: g.ID, Scope: "group:42/message.write",
		By: "bookbot", Parent: root.ID, Count: 1}
	require.Equal(t, derived, entries[1])
	require.Equal(t, []string{"used", "weather", g.ID}, []string{entries[0].What, entries[0].App, entries[0].Grant})
	derived.Left = 2
	require.Equal(t, derived, seen[2])
	require.Equal(t, 1, seen[3].Left)
}

// A price is paid by what is derived alone: an ordinary use is five operations, and the token as long as it was.
func TestOrdinaryUseStaysOrdinary(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	with := newWorld(t, func(c *grant.Config) { c.Triggers[0].Delegates = []string{"weather"} })
	named := with.token("m1")
	require.Less(t, len(token), len(named))
	w.derive("bookbot", token, grant.Grant{})
	with.derive("weather", named, grant.Grant{})
	for _, x := range []struct {
		*world
		token string
	}{{w, token}, {with, named}} {
		x.store.reset()
		_, err := x.Use(ctx, x.token, write)
		require.NoError(t, err)
		require.Len(t, x.store.batches(), 1)
		require.Len(t, x.store.batches()[0], 5)
	}
}

// As deep as can be, with all that a use may take along, it is still one write.
func TestDeriveDepth(t *testing.T) { stores.Each(t, testDeriveDepth) }

func testDeriveDepth(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	cases := []struct{ said, depth int }{{0, 4}, {1, 1}, {8, 8}, {-1, 0}}
	w := newWorld(t, func(c *grant.Config) {
		delegates := []string{}
		for i := range 8 {
			app := grant.App{ID: fmt.Sprint("d", i), Actions: []string{"message.write"}}
			c.Apps, delegates = append(c.Apps, app), append(delegates, app.ID)
		}
		c.Triggers = nil
		for i, said := range cases {
			t := onMention()
			t.ID, t.In, t.Uses, t.DeriveDepth, t.Delegates = fmt.Sprint(i), fmt.Sprint("group:", i), 9, said.said, delegates
			c.Triggers = append(c.Triggers, t)
		}
	})
	for i, c := range cases {
		ev := mention(fmt.Sprint("m", i))
		ev.Domain = scope.MustDomain(fmt.Sprint("group:", i))
		writes := func() (scope.Scope, error) { return scope.New(ev.Domain, "message.write") }
		token := w.bind(w.emit(ev), thumbprint)
		want := []string{"bookbot"}
		for i := range c.depth {
			_, token = w.derive(fmt.Sprint("d", i), token, grant.Grant{})
			want = slices.Insert(want, 0, fmt.Sprint("d", i))
		}
		_, _, err := w.Derive(ctx, want[0], grant.NewSecret(token), grant.Grant{})
		require.ErrorIs(t, err, grant.ErrLimited)
		d, err := w.PrepareBound(ctx, token, w.holds(thumbprint, fmt.Sprint(i)), writes)
		require.NoError(t, err)
		require.NoError(t, d.Once("key", [32]byte{1}))
		require.NoError(t, d.Check(ctx))
		require.NoError(t, d.Spend(ctx, nil))
		require.Equal(t, 8, d.Left)
		require.Equal(t, want, d.Actors())
		require.NoError(t, d.Answered(ctx, nil))
		require.NoError(t, w.RevokeApp(ctx, "zhang-san", "bookbot", ev.Domain))
		_, err = w.UseBound(ctx, token, w.holds(thumbprint, "2"), writes)
		require.ErrorIs(t, err, grant.ErrRevoked)
	}
}

// A child of a bound token is bound, to the same key unless accept knows another.
func TestDeriveOfBoundToken(t *testing.T) {
	w := newWorld(t, delegating)
	token := w.bind(w.emit(mention("m1")), thumbprint)
	keep := func(child *grant.Grant) error { return nil }
	for name, c := range map[string]struct {
		accept func(*grant.Grant) error
		key    string
		err    error
	}{
		"as it is": {keep, thumbprint, nil},
		"another":  {func(g *grant.Grant) error { g.Key = "another"; return nil }, "another", nil},
		"none":     {func(g *grant.Grant) error { g.Key = ""; return nil }, "", scope.ErrWiden},
		"no key":   {func(g *grant.Grant) error { g.Key = "="; return nil }, "", grant.ErrInvalid},
		"refused":  {func(g *grant.Grant) error { return errOtherKey }, "", errOtherKey},
	} {
		w.store.reset()
		g, child, err := w.DeriveFunc(ctx, "weather", grant.NewSecret(token), grant.Grant{Domain: thread}, func(d *grant.Delegation, g *grant.Grant) error {
			require.Equal(t, []any{thumbprint, "bookbot", "zhang-san", group, 5}, []any{d.Key(), d.App, d.Account, d.GrantedIn(), d.Uses})
			require.Equal(t, []any{"weather", thread, thumbprint}, []any{g.App, g.Domain, g.Key})
			return c.accept(g)
		})
		require.ErrorIs(t, err, c.err, name)
		if c.err != nil {
			require.Zero(t, w.store.count("apply"), name)
			continue
		}
		require.Equal(t, c.key, g.Key)
		in := func() (scope.Scope, error) { return scope.MustParse("group:42/thread:7/message.write"), nil }
		_, err = w.Use(ctx, child.Reveal(), scope.MustParse("group:42/thread:7/message.write"))
		require.ErrorIs(t, err, grant.ErrUnknown)
		d, err := w.UseBound(ctx, child.Reveal(), w.holds(c.key, name), in)
		require.NoError(t, err, name)
		require.Equal(t, c.key, d.Key())
	}
	// What was bound to none may be bound from here on.
	_, child, err := w.DeriveFunc(ctx, "bookbot", grant.NewSecret(w.token("m2")), grant.Grant{}, func(_ *grant.Delegation, g *grant.Grant) error { g.Key = thumbprint; return nil })
	require.NoError(t, err)
	_, err = w.UseBound(ctx, child.Reveal(), w.holds(thumbprint, "x"), writes)
	require.NoError(t, err)
}

// Without a count there is none to be less than, and a count below it holds.
func TestDeriveOfUnlimited(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { delegating(c); c.Triggers[0].Uses = grant.Unlimited })
	token := w.token("m1")
	for _, uses := range []int{0, grant.Unlimited} {
		g, child := w.derive("weather", token, grant.Grant{Uses: uses})
		require.Equal(t, grant.Unlimited, g.Uses)
		d, err := w.Use(ctx, child, write)
		require.NoError(t, err)
		require.Equal(t, grant.Unlimited, d.Left)
		require.Equal(t, grant.Unlimited, w.left(child))
	}
	g, child := w.derive("weather", token, grant.Grant{Uses: 2})
	require.Equal(t, 2, g.Uses)
	d, err := w.Use(ctx, child, write)
	require.NoError(t, err)
	require.Equal(t, 1, d.Left)
	_, _, err = w.Derive(ctx, "weather", grant.NewSecret(child), grant.Grant{Uses: grant.Unlimited})
	require.ErrorIs(t, err, scope.ErrWiden)
	// A count that no trigger could have given would end before what is kept of tokens without one.
	for _, uses := range []int{-2, 1_000_001, 1 << 53, math.MaxInt} {
		_, _, err = w.Derive(ctx, "weather", grant.NewSecret(token), grant.Grant{Uses: uses})
		require.ErrorIs(t, err, grant.ErrInvalid, "%d uses", uses)
	}
	g, child = w.derive("weather", token, grant.Grant{Uses: 1_000_000})
	require.Equal(t, 1_000_000, g.Uses)
	require.EqualValues(t, 1_000_000, w.left(child))
}

// Who does not ask for a token that is not its own learns nothing, and nobody asks the store.
func TestInspectFunc(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	w.store.reset()
	w.clock.advance(time.Hour)
	_, err := w.InspectFunc(ctx, grant.NewSecret(token), func(d *grant.Delegation) error {
		require.Equal(t, "bookbot", d.App)
		return errOtherKey
	})
	require.Equal(t, errOtherKey, err, "whether it is still good or not")
	_, err = w.InspectFunc(ctx, grant.NewSecret("bhst_x"), func(*grant.Delegation) error { t.Error("asked about a forgery"); return nil })
	require.ErrorIs(t, err, grant.ErrUnknown)
	require.Zero(t, w.store.total())
}

func TestDelegatesOfTrigger(t *testing.T) {
	faults := func(change func(*grant.Trigger)) string {
		c := newWorld(t, nil).config
		c.Triggers = slices.Clone(c.Triggers)
		change(&c.Triggers[0])
		_, err := grant.NewEngine(c)
		if err != nil {
			require.ErrorIs(t, err, grant.ErrInvalid)
			return err.Error()
		}
		return ""
	}
	require.Empty(t, faults(func(t *grant.Trigger) { t.Delegates, t.DeriveDepth = []string{"weather"}, 8 }))
	for want, change := range map[string]func(*grant.Trigger){
		`delegates: no app has the ID "nobody"`:                               func(t *grant.Trigger) { t.Delegates = []string{"nobody"} },
		`delegates: "bookbot" is the trigger's own app, which needs no leave`: func(t *grant.Trigger) { t.Delegates = []string{"bookbot"} },
		`delegates: "weather" is there twice`:                                 func(t *grant.Trigger) { t.Delegates = []string{"weather", "weather"} },
		`delegates: the app "weather" is registered for none of the actions`:  func(t *grant.Trigger) { t.Delegates, t.Allow = []string{"weather"}, []string{"member.read"} },
		`delegates: names 9 apps, at most 8`:                                  func(t *grant.Trigger) { t.Delegates = strings.Split("abcdefghi", "") },
		`stateless: nothing is derived of such a token`:                       func(t *grant.Trigger) { t.Stateless, t.Delegates = true, []string{"weather"} },
		`derive_depth: 9 is not between -1 and 8`:                             func(t *grant.Trigger) { t.DeriveDepth = 9 },
		`derive_depth: -2 is not between -1 and 8`:                            func(t *grant.Trigger) { t.DeriveDepth = -2 },
	} {
		require.Contains(t, faults(change), want)
	}
	var read grant.Trigger
	text := `{"app":"bookbot","on":"mention","in":"*","allow":["message.write"],"delegates":["weather"],"derive_depth":-1}`
	require.NoError(t, read.UnmarshalJSON([]byte(text)))
	require.Equal(t, []string{"weather"}, read.Delegates)
	require.Equal(t, -1, read.DeriveDepth)
	again, err := read.MarshalJSON()
	require.NoError(t, err)
	require.JSONEq(t, text, string(again))
}
