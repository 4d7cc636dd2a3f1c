package grant_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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

func TestP1Cause(t *testing.T) { stores.Each(t, testP1Cause) }

func testP1Cause(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	w := newWorld(t, nil)

	// What no trigger predetermines makes nothing, and touches nothing.
	for name, ev := range map[string]grant.Event{
		"another operation": {ID: "1", Operation: grant.Command, Account: "zhang-san", Domain: group, App: "bookbot", Target: "/book"},
		"another app":       {ID: "1", Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "weather"},
		"no app of ours":    {ID: "1", Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "bookbot2"},
		"another place":     {ID: "1", Operation: grant.Mention, Account: "zhang-san", Domain: scope.MustDomain("direct:42"), App: "bookbot"},
	} {
		got, err := w.Emit(ctx, ev)
		require.NoError(t, err, name)
		require.Nil(t, got, name)
	}
	require.Zero(t, w.store.total())

	// The subject is who did it, where they did it, and the token says what they did.
	ev := mention("m1")
	ev.Domain = scope.MustDomain("group:42/thread:7")
	g := w.emit(ev)
	require.Equal(t, "zhang-san", g.Account)
	require.Equal(t, ev.Domain, g.Domain)
	token := w.redeem(g)
	d, err := w.Use(ctx, token, scope.MustParse("group:42/thread:7/message.write"))
	require.NoError(t, err)
	require.Equal(t, grant.Delegation{Account: "zhang-san", App: "bookbot", Domain: ev.Domain, Scope: d.Scope, Grant: g.ID, Trigger: "mention",
		Operation: grant.Mention, Event: "m1", IssuedAt: start, NotAfter: start.Add(10 * time.Minute), Uses: 3, Left: 2},
		visible(d))

	// There is one way to a token: its record belongs to a redeemed grant, and that to an event, of the same account.
	byAggregate := map[string]map[string]int{}
	for _, r := range w.store.everything(t) {
		a := store.Aggregate(r.ID)
		if byAggregate[a] == nil {
			byAggregate[a] = map[string]int{}
		}
		byAggregate[a][r.Kind]++
		require.Equal(t, "zhang-san", r.Owner)
	}
	require.Len(t, byAggregate, 1)
	for _, n := range byAggregate {
		require.Equal(t, map[string]int{"event": 1, "grant": 1, "token": 1, "ledger": 3}, n)
	}
}

// visible is a Delegation without what it keeps for its methods.
func visible(d *grant.Delegation) grant.Delegation {
	return grant.Delegation{Account: d.Account, App: d.App, Domain: d.Domain, Scope: d.Scope, Grant: d.Grant, Trigger: d.Trigger,
		Operation: d.Operation, Event: d.Event, IssuedAt: d.IssuedAt, NotAfter: d.NotAfter, Uses: d.Uses, Left: d.Left}
}

func TestP2OncePerCause(t *testing.T) { stores.Each(t, testP2OncePerCause) }

func testP2OncePerCause(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	t.Run("again", func(t *testing.T) {
		w := newWorld(t, nil)
		first := w.emit(mention("m1"))
		for _, e := range w.nodes() {
			again, err := e.Emit(ctx, mention("m1"))
			require.NoError(t, err)
			require.Len(t, again, 1)
			require.Equal(t, first.Code.Reveal(), again[0].Code.Reveal())
			want := exported(first)
			want.Code, again[0].Code = grant.Secret{}, grant.Secret{}
			require.Equal(t, want, exported(again[0]), "what is found later is what was returned at first")
		}
		require.Len(t, w.store.ofKind(t, "grant"), 1)

		token := w.redeem(first)
		again := w.emit(mention("m1"))
		require.Equal(t, "redeemed", again.State)
		require.True(t, again.Code.IsZero())
		require.NotEmpty(t, token)
	})
	t.Run("other content", func(t *testing.T) {
		w := newWorld(t, nil)
		w.emit(mention("m1"))
		for name, change := range map[string]func(*grant.Event){
			"text":   func(ev *grant.Event) { ev.Text += "!" },
			"target": func(ev *grant.Event) { ev.Target = "x" },
			"domain": func(ev *grant.Event) { ev.Domain = scope.MustDomain("group:43") },
			"data":   func(ev *grant.Event) { ev.Data = map[string]string{"a": "b"} },
		} {
			ev := mention("m1")
			change(&ev)
			got, err := w.Emit(ctx, ev)
			require.ErrorIs(t, err, grant.ErrInvalid, name)
			require.ErrorContains(t, err, "other content", name)
			require.Empty(t, got, name)
		}
		require.Len(t, w.store.ofKind(t, "grant"), 1)
	})
	t.Run("what makes an event another", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) {
			c.Triggers = append(c.Triggers, grant.Trigger{App: "bookbot", On: grant.ButtonPress, In: "group:*", Allow: []string{"message.write"}})
		})
		seen := map[string]bool{}
		for _, ev := range []grant.Event{
			mention("m1"), mention("m2"), mention("m"), mention("1"),
			{ID: "m1", Operation: grant.Mention, Account: "li-si", App: "bookbot", Domain: group},
			{ID: "1", Operation: grant.Mention, Account: "li-sim", App: "bookbot", Domain: group}, // no two concatenate to the same
			{ID: "m1", Operation: grant.ButtonPress, Account: "zhang-san", App: "bookbot", Domain: group},
		} {
			g := w.emit(ev)
			require.False(t, seen[g.ID])
			seen[g.ID] = true
		}
	})
	t.Run("what makes a trigger another", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) {
			c.Triggers[0].On, c.Triggers[0].Match.Keywords = grant.MessagePost, []string{"dune"}
		})
		ev := mention("m1")
		ev.Operation, ev.App = grant.MessagePost, ""
		first := w.emit(ev)
		c := w.config
		c.Triggers = slices.Clone(c.Triggers)
		c.Triggers[0].Uses, c.Triggers[0].For, c.Triggers[0].Consent = 7, time.Hour, grant.Always
		edited, err := grant.NewEngine(c)
		require.NoError(t, err)
		got, err := edited.Emit(ctx, ev)
		require.NoError(t, err)
		require.Equal(t, exported(first), exported(got[0]), "edited, it is the same")
		c.Triggers[0].App = "weather"
		other, err := grant.NewEngine(c)
		require.NoError(t, err)
		for range 3 {
			got, err = other.Emit(ctx, ev)
			require.NoError(t, err)
			require.Equal(t, "weather", got[0].App, "another app's is another, which grants once")
			require.NotEqual(t, first.ID, got[0].ID)
		}
		require.Len(t, w.store.ofKind(t, "grant"), 2)
	})
	t.Run("several triggers", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) {
			two, three := onMention(), onMention()
			two.ID, three.ID, three.In = "two", "three", "*"
			c.Triggers = append(c.Triggers, two, three)
		})
		w.store.reset()
		got, err := w.Emit(ctx, mention("m1"))
		require.NoError(t, err)
		require.Len(t, got, 3)
		require.Equal(t, 3, w.store.count("apply"), "one write each")
		require.Zero(t, w.store.count("get"))
		again, err := w.Emit(ctx, mention("m1"))
		require.NoError(t, err)
		require.Len(t, again, 3)
		require.Len(t, w.store.ofKind(t, "grant"), 3)
		require.Len(t, w.store.ofKind(t, "event"), 1)
	})
	t.Run("64 at once", func(t *testing.T) {
		for range s.Some(20) {
			w := newWorld(t, func(c *grant.Config) {
				c.Triggers[0].PerMinute = 1 // the losers spend nothing of it
				asked := onMention()
				asked.ID, asked.Consent = "asked", grant.Once
				c.Triggers = append(c.Triggers, asked)
			})
			nodes := w.nodes()
			var codes [64]string
			errs := together(64, func(i int) error {
				got, err := nodes[i%2].Emit(ctx, mention("m1"))
				if err == nil && len(got) != 2 {
					err = fmt.Errorf("%d grants", len(got))
				}
				for _, g := range got {
					codes[i] += g.Trigger + g.State + g.Code.Reveal()
				}
				return err
			})
			require.Equal(t, 64, winners(t, errs))
			for _, c := range codes {
				require.Equal(t, codes[0], c)
			}
			require.Len(t, w.store.ofKind(t, "grant"), 2)
			require.Len(t, w.store.ofKind(t, "poll"), 1)
			require.Equal(t, map[string]int{"issued": 1, "pending": 1}, w.whats("zhang-san"))
		}
	})
	t.Run("64 with other content", func(t *testing.T) {
		w := newWorld(t, nil)
		nodes := w.nodes()
		errs := together(64, func(i int) error {
			ev := mention("m1")
			ev.Text = fmt.Sprint(i)
			_, err := nodes[i%2].Emit(ctx, ev)
			return err
		})
		require.Equal(t, 1, winners(t, errs, grant.ErrInvalid))
		require.Len(t, w.store.ofKind(t, "grant"), 1)
	})
}

// exported is a Grant as the outside sees it.
func exported(g grant.Grant) grant.Grant {
	return grant.Grant{ID: g.ID, Account: g.Account, App: g.App, Trigger: g.Trigger, Domain: g.Domain, Actions: g.Actions, Event: g.Event,
		State: g.State, IssuedAt: g.IssuedAt, RedeemBy: g.RedeemBy, For: g.For, NotAfter: g.NotAfter, Uses: g.Uses, Deliver: g.Deliver, Code: g.Code, Tries: g.Tries}
}

func TestP3Counted(t *testing.T) { stores.Everywhere(t, testP3Counted) }

func testP3Counted(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	for _, nodes := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			for range s.Some(10) {
				w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = 5 })
				engines := w.nodes()[:nodes]
				g := w.emit(mention("m1"))
				var token atomic.Pointer[string]
				errs := together(64, func(i int) error {
					_, secret, err := engines[i%nodes].Redeem(ctx, "bookbot", g.Code)
					if text := secret.Reveal(); err == nil {
						token.Store(&text)
					} else if text != "" {
						return errors.New("a loser has a token")
					}
					return err
				})
				require.Equal(t, 1, winners(t, errs, grant.ErrUsedUp))
				require.Len(t, w.store.ofKind(t, "token"), 1)

				var lefts [5]atomic.Int32
				errs = together(64, func(i int) error {
					d, err := engines[i%nodes].Use(ctx, *token.Load(), write)
					if err == nil {
						lefts[d.Left].Add(1)
					}
					return err
				})
				require.Equal(t, 5, winners(t, errs, grant.ErrUsedUp))
				for i := range lefts {
					require.EqualValues(t, 1, lefts[i].Load(), "each use knows its number")
				}
				require.Equal(t, map[string]int{"issued": 1, "redeemed": 1, "used": 5, "refused": 63 + 59}, w.whats("zhang-san"))
			}
		})
	}
	t.Run("lost answers", func(t *testing.T) {
		w := newWorld(t, nil)
		lose := func(call string) {
			w.store.reset()
			w.store.after = func(_ int, c string) error {
				if c == call {
					return errStore
				}
				return nil
			}
		}
		lose("apply")
		_, err := w.Emit(ctx, mention("m1"))
		require.ErrorIs(t, err, errStore)
		w.store.reset()
		g := w.emit(mention("m1"))
		require.Len(t, w.store.ofKind(t, "grant"), 1)

		lose("apply")
		_, token, err := w.Redeem(ctx, "bookbot", g.Code)
		require.ErrorIs(t, err, errStore)
		require.True(t, token.IsZero())
		w.store.reset()
		_, token, err = w.Redeem(ctx, "bookbot", g.Code)
		require.ErrorIs(t, err, grant.ErrUsedUp, "a retry cannot be told from a thief")
		require.True(t, token.IsZero())

		held := w.token("m2")
		for range 2 {
			lose("apply")
			_, err = w.Use(ctx, held, write)
			require.ErrorIs(t, err, errStore)
			require.Empty(t, grant.Reason(err))
		}
		w.store.reset()
		d, err := w.Use(ctx, held, write)
		require.NoError(t, err)
		require.Zero(t, d.Left, "what may have been spent was spent")
		_, err = w.Use(ctx, held, write)
		require.ErrorIs(t, err, grant.ErrUsedUp)
	})
	t.Run("lost answers at once", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = 7 })
		token := w.token("m1")
		w.store.reset()
		w.store.after = func(n int, _ string) error {
			if n%3 == 0 {
				return errStore
			}
			return nil
		}
		nodes := w.nodes()
		errs := together(64, func(i int) error {
			_, err := nodes[i%2].Use(ctx, token, write)
			return err
		})
		require.LessOrEqual(t, winners(t, errs, grant.ErrUsedUp, errStore), 7)
		require.Len(t, w.store.batches(), 7)
	})
	t.Run("costs", func(t *testing.T) {
		catalog, err := scope.NewCatalog(
			scope.Action{Name: "message.write", Words: map[string]string{"en": "w"}, Cost: 2},
			scope.Action{Name: "message.read", Words: map[string]string{"en": "r"}, Cost: scope.Free})
		require.NoError(t, err)
		w := newWorld(t, func(c *grant.Config) {
			c.Catalog, c.Apps = catalog, []grant.App{weather()}
			c.Triggers[0].App, c.Triggers[0].Allow = "weather", []string{"message.write", "message.read"}
		})
		ev := mention("m1")
		ev.App = "weather"
		token := w.redeem(w.emit(ev))
		read := scope.MustParse("group:42/message.read")
		for _, step := range []struct {
			want scope.Scope
			left int
			err  error
		}{{read, 3, nil}, {write, 1, nil}, {read, 1, nil}, {write, 0, grant.ErrUsedUp}, {read, 1, nil}} {
			d, err := w.Use(ctx, token, step.want)
			if step.err != nil {
				require.ErrorIs(t, err, step.err)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, step.left, d.Left)
		}
	})
}

// Without installations, which come later.
func TestP4Narrow(t *testing.T) { stores.Each(t, testP4Narrow) }

func testP4Narrow(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	both := func(c *grant.Config) { c.Triggers[0].Allow = []string{"message.write", "member.read"} }
	members := scope.MustParse("group:42/member.read")

	t.Run("the user's own rights at issue", func(t *testing.T) {
		w := newWorld(t, both)
		w.setPermit(allow("member.read"))
		g := w.emit(mention("m1"))
		require.Equal(t, []string{"member.read"}, g.Actions)
		w.setPermit(nil) // a right that is won later widens nothing
		token := w.redeem(g)
		_, err := w.Use(ctx, token, write)
		require.ErrorIs(t, err, scope.ErrWrongAction)
		_, err = w.Use(ctx, token, members)
		require.NoError(t, err)
	})
	t.Run("the empty intersection is a recorded refusal", func(t *testing.T) {
		w := newWorld(t, both)
		w.setPermit(allow())
		got, err := w.Emit(ctx, mention("m1"))
		require.ErrorIs(t, err, grant.ErrDenied)
		require.Empty(t, got)
		require.Empty(t, w.store.everything(t))
		entries := w.ledger("zhang-san")
		require.Len(t, entries, 1)
		require.Equal(t, grant.Entry{ID: entries[0].ID, At: start, What: "refused", Account: "zhang-san", App: "bookbot", Scope: "group:42", Reason: "denied", Count: 1}, entries[0])
	})
	t.Run("the user's own rights at use", func(t *testing.T) {
		w := newWorld(t, both)
		token := w.token("m1")
		w.setPermit(allow("member.read"))
		_, err := w.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrDenied)
		require.Equal(t, "rights_changed", grant.Reason(err))
		d, err := w.Use(ctx, token, members)
		require.NoError(t, err)
		require.Equal(t, 2, d.Left, "the refusal spent nothing")
		in, err := w.Inspect(ctx, grant.NewSecret(token))
		require.NoError(t, err)
		require.Equal(t, "group:42/member.read", in.Granted().String())
	})
	t.Run("the app's registration at use", func(t *testing.T) {
		w := newWorld(t, both)
		token := w.token("m1")
		w.config.Triggers = nil // the trigger is fixed at issue
		w.config.Apps[0].Actions = []string{"member.read"}
		narrowed := w.another()
		_, err := narrowed.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrDenied)
		_, err = narrowed.Use(ctx, token, members)
		require.NoError(t, err)
		w.config.Apps = w.config.Apps[1:]
		_, err = w.another().Use(ctx, token, members)
		require.ErrorIs(t, err, grant.ErrRevoked)
		require.Equal(t, "revoked", grant.Reason(err))
	})
	t.Run("where", func(t *testing.T) {
		w := newWorld(t, nil)
		token := w.token("m1")
		for _, s := range []string{"group:4/message.write", "group:421/message.write", "group:43/thread:42/message.write", "direct:42/message.write"} {
			_, err := w.Use(ctx, token, scope.MustParse(s))
			require.ErrorIs(t, err, scope.ErrWrongDomain, s)
		}
		_, err := w.Use(ctx, token, scope.Scope{})
		require.ErrorIs(t, err, scope.ErrWrongDomain)
		d, err := w.Use(ctx, token, scope.MustParse("group:42/thread:7/message.write"))
		require.NoError(t, err)
		require.Equal(t, "group:42/thread:7", d.Domain.String())
		require.Equal(t, "group:42", d.GrantedIn().String())

		ev := mention("m2")
		ev.Domain = scope.MustDomain("group:42/thread:7")
		narrow := w.redeem(w.emit(ev))
		_, err = w.Use(ctx, narrow, write)
		require.ErrorIs(t, err, scope.ErrWrongDomain, "from a thread, not the group")
	})
	t.Run("a ceiling is an error and never a clamp", func(t *testing.T) {
		for name, change := range map[string]func(*grant.Trigger){
			"life":           func(t *grant.Trigger) { t.For = 7*24*time.Hour + 1 },
			"uses":           func(t *grant.Trigger) { t.Uses = 1_000_001 },
			"redeem_within":  func(t *grant.Trigger) { t.RedeemWithin = time.Hour + 1 },
			"redirect":       func(t *grant.Trigger) { t.RedeemWithin, t.Deliver = 61*time.Second, grant.Redirect },
			"app's actions":  func(t *grant.Trigger) { t.Allow = []string{"message.write", "file.write"} },
			"catalog":        func(t *grant.Trigger) { t.Allow = []string{"message.erase"} },
			"below the unit": func(t *grant.Trigger) { t.For = time.Second - 1 },
		} {
			c := newWorld(t, nil).config
			trigger := onMention()
			change(&trigger)
			c.Triggers = []grant.Trigger{trigger}
			_, err := grant.NewEngine(c)
			require.ErrorIs(t, err, grant.ErrInvalid, name)
		}
	})
}

func TestP5Revocable(t *testing.T) { stores.Each(t, testP5Revocable) }

func testP5Revocable(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	two := func(c *grant.Config) {
		other := onMention()
		other.ID, other.App = "weather", "weather"
		c.Triggers = append(c.Triggers, other)
	}
	// held are the tokens of one account: app and domain.
	type held struct{ app, domain string }
	all := []held{{"bookbot", "group:42"}, {"bookbot", "group:42/thread:7"}, {"bookbot", "group:43"}, {"weather", "group:42"}}
	for _, tc := range []struct {
		name   string
		revoke func(*grant.Engine, map[held]grant.Grant) error
		gone   []held
	}{
		{"one grant", func(e *grant.Engine, g map[held]grant.Grant) error { return e.Revoke(ctx, "zhang-san", g[all[1]].ID) }, all[1:2]},
		{"one app here", func(e *grant.Engine, _ map[held]grant.Grant) error {
			return e.RevokeApp(ctx, "zhang-san", "bookbot", scope.MustDomain("group:42/thread:9"))
		}, all[:2]},
		{"the account", func(e *grant.Engine, _ map[held]grant.Grant) error { return e.RevokeAccount(ctx, "zhang-san") }, all},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, two)
			nodes := w.nodes()
			grants, tokens, unredeemed := map[held]grant.Grant{}, map[held]string{}, map[held]grant.Grant{}
			for i, h := range all {
				ev := grant.Event{ID: fmt.Sprint("t", i), Operation: grant.Mention, Account: "zhang-san", App: h.app, Domain: scope.MustDomain(h.domain)}
				grants[h] = w.emit(ev)
				tokens[h] = w.redeem(grants[h])
				ev.ID = fmt.Sprint("c", i)
				unredeemed[h] = w.emit(ev)
			}
			li := mention("li")
			li.Account = "li-si"
			others := w.redeem(w.emit(li))

			w.store.reset()
			require.NoError(t, tc.revoke(w.Engine, grants))
			require.Equal(t, 1, w.store.count("apply"), "one write, whatever their number")

			gone := map[held]bool{}
			for _, h := range tc.gone {
				gone[h] = true
			}
			list, err := w.Grants(ctx, "zhang-san", "", true)
			require.NoError(t, err)
			states := map[string]string{}
			for _, g := range list {
				states[g.ID] = g.State
			}
			for _, h := range all {
				for i, e := range nodes {
					_, err := e.Use(ctx, tokens[h], scope.MustParse(h.domain+"/message.write"))
					_, inspected := e.Inspect(ctx, grant.NewSecret(tokens[h]))
					if gone[h] {
						require.ErrorIs(t, err, grant.ErrRevoked, "node %d", i)
						require.ErrorIs(t, inspected, grant.ErrRevoked)
						require.Equal(t, "revoked", states[grants[h].ID])
					} else {
						require.NoError(t, err)
						require.NoError(t, inspected)
						require.Equal(t, "redeemed", states[grants[h].ID])
					}
				}
				// What waited is gone as well, if more than one grant was meant.
				_, _, err := nodes[1].Redeem(ctx, h.app, unredeemed[h].Code)
				if gone[h] && tc.name != "one grant" {
					require.ErrorIs(t, err, grant.ErrRevoked)
				} else {
					require.NoError(t, err)
				}
			}
			_, err = w.Use(ctx, others, write)
			require.NoError(t, err, "another account's")

			// What is granted afterwards lives, on a node that has not heard of it as well.
			for i, e := range nodes {
				got, err := e.Emit(ctx, mention(fmt.Sprint("after", i)))
				require.NoError(t, err)
				_, token, err := e.Redeem(ctx, "bookbot", got[0].Code)
				require.NoError(t, err)
				_, err = w.Use(ctx, token.Reveal(), write)
				require.NoError(t, err)
			}
		})
	}
	t.Run("between a look and a write", func(t *testing.T) {
		for name, revoke := range map[string]func(w *world, g grant.Grant) error{
			"grant":   func(w *world, g grant.Grant) error { return w.another().Revoke(ctx, "zhang-san", g.ID) },
			"app":     func(w *world, g grant.Grant) error { return w.another().RevokeApp(ctx, "zhang-san", "bookbot", group) },
			"account": func(w *world, g grant.Grant) error { return w.another().RevokeAccount(ctx, "zhang-san") },
		} {
			w := newWorld(t, nil)
			g := w.emit(mention("m1"))
			w.store.hook = func() { require.NoError(t, revoke(w, g)) }
			_, token, err := w.Redeem(ctx, "bookbot", g.Code)
			require.ErrorIs(t, err, grant.ErrRevoked, name)
			require.True(t, token.IsZero())
			require.Empty(t, w.store.ofKind(t, "token"))

			// During issue: the grant is made after it, and lives.
			w.store.hook = func() { require.NoError(t, revoke(w, g)) }
			_, err = w.Use(ctx, w.token("m2"), write)
			require.NoError(t, err, name)

			// During use: it is too late for the user, and for nobody else.
			token2 := w.token("m3")
			g3 := w.emit(mention("m3"))
			w.store.hook = func() { require.NoError(t, revoke(w, g3)) }
			_, err = w.Use(ctx, token2, write)
			require.ErrorIs(t, err, grant.ErrRevoked, name)
		}
	})
	t.Run("again", func(t *testing.T) {
		w := newWorld(t, nil)
		g := w.emit(mention("m1"))
		for range 3 {
			require.NoError(t, w.Revoke(ctx, "zhang-san", g.ID))
		}
		require.Equal(t, 1, w.whats("zhang-san")["revoked"], "who revokes a grant again and again fills no ledger")
		require.ErrorIs(t, w.Revoke(ctx, "li-si", g.ID), grant.ErrUnknown, "somebody else's")
	})
	t.Run("64 at once are one", func(t *testing.T) {
		w := newWorld(t, nil)
		nodes := w.nodes()
		g := w.emit(mention("m1"))
		token := grant.NewSecret(w.redeem(g))
		errs := together(64, func(i int) error {
			switch e := nodes[i%2]; i % 3 {
			case 0:
				return e.RevokeToken(ctx, "bookbot", token)
			case 1:
				return e.RevokeToken(ctx, "bookbot", g.Code)
			default:
				return e.Revoke(ctx, "zhang-san", g.ID)
			}
		})
		require.Equal(t, 64, winners(t, errs))
		require.Equal(t, 1, w.whats("zhang-san")["revoked"])
		require.EqualValues(t, 1, w.store.ofKind(t, "revocation")[0].Version)
		_, err := nodes[1].Use(ctx, token.Reveal(), write)
		require.ErrorIs(t, err, grant.ErrRevoked)
	})
	// Whatever a revocation meets: what was done before it is done, and nothing is done after it.
	t.Run("64 redemptions, decisions and uses, and a revocation", func(t *testing.T) {
		for range s.Some(20) {
			w := newWorld(t, func(c *grant.Config) {
				c.Triggers[0].Uses, c.Triggers[0].Deliver = grant.Unlimited, grant.Push
				asked := onMention()
				asked.ID, asked.App, asked.Consent, asked.Deliver = "asked", "weather", grant.Always, grant.Push
				c.Triggers = append(c.Triggers, asked)
			})
			nodes := w.nodes()
			used := w.emit(mention("m1"))
			token := w.redeem(used)
			waiting, question := w.emit(mention("m2")), mention("m3")
			question.App = "weather"
			pending := w.emit(question)
			var gone [3]atomic.Bool
			errs := together(64, func(i int) error {
				e, which := nodes[i%2], i/2%3
				g := []grant.Grant{used, waiting, pending}[which]
				if i/6 == 5 {
					err := e.Revoke(ctx, "zhang-san", g.ID)
					gone[which].Store(true)
					return err
				}
				after := gone[which].Load()
				var err error
				switch which {
				case 0:
					_, err = e.Use(ctx, token, write)
				case 1:
					_, _, err = e.Redeem(ctx, "bookbot", g.Code)
				case 2:
					_, err = e.Decide(ctx, "zhang-san", g.ID, true)
				}
				if after && err == nil {
					return errors.New("done after the revocation")
				}
				return err
			})
			winners(t, errs, grant.ErrRevoked, grant.ErrUsedUp, grant.ErrInvalid)
			_, err := nodes[0].Use(ctx, token, write)
			require.ErrorIs(t, err, grant.ErrRevoked)
			_, _, err = nodes[0].Redeem(ctx, "bookbot", waiting.Code)
			require.Error(t, err)
			_, err = nodes[0].Decide(ctx, "zhang-san", pending.ID, true)
			require.Error(t, err)
			require.Empty(t, w.store.ofKind(t, "push"), "nothing waits to be delivered")
			list, err := nodes[1].Grants(ctx, "zhang-san", "", true)
			require.NoError(t, err)
			require.Len(t, list, 3)
			words := map[string]map[string]int{}
			for _, entry := range w.ledger("zhang-san") {
				if words[entry.Grant] == nil {
					words[entry.Grant] = map[string]int{}
				}
				words[entry.Grant][entry.What]++
			}
			for _, g := range list {
				require.Equal(t, "revoked", g.State)
				require.Equal(t, 1, words[g.ID]["revoked"])
				require.LessOrEqual(t, words[g.ID]["redeemed"], 1)
				require.LessOrEqual(t, words[g.ID]["issued"], 1)
			}
		}
	})
	t.Run("what has ended", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) { c.Triggers[0].For = time.Minute })
		g := w.emit(mention("m1"))
		token := w.redeem(g)
		slow := w.clock.now() // of a node whose clock is behind
		w.clock.advance(time.Minute)
		_, err := w.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrExpired)
		require.NoError(t, w.Revoke(ctx, "zhang-san", g.ID))
		require.Equal(t, 1, w.whats("zhang-san")["revoked"])
		w.clock.set(slow)
		_, err = w.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked, "where it has not ended yet")

		// Who is asked for it when it may be purged any moment has no such grant.
		w.clock.set(slow)
		late := w.emit(mention("m3"))
		w.clock.set(late.RedeemBy.Add(7 * 24 * time.Hour))
		require.ErrorIs(t, w.Revoke(ctx, "zhang-san", late.ID), grant.ErrUnknown)
		w.clock.advance(-time.Microsecond)
		require.NoError(t, w.Revoke(ctx, "zhang-san", late.ID))
		require.NoError(t, w.Revoke(ctx, "zhang-san", late.ID))
		require.Equal(t, 2, w.whats("zhang-san")["revoked"])
	})
	t.Run("it is remembered longer than the grant", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) { c.Triggers[0].For = time.Minute })
		g := w.emit(mention("m1"))
		w.redeem(g)
		require.NoError(t, w.Revoke(ctx, "zhang-san", g.ID))
		revoked := w.clock.now()
		second := w.emit(mention("m2"))
		w.redeem(second)
		for _, days := range []int{0, 6, 8, 13, 15, 20} {
			w.clock.set(revoked.AddDate(0, 0, days))
			_, err := w.Purge(ctx, store.MaxPage)
			require.NoError(t, err)
			if len(w.store.ofKind(t, "grant")) > 0 {
				require.Len(t, w.store.ofKind(t, "revocation"), 1, "%d days", days)
			}
			if days > 7 {
				require.ErrorIs(t, w.Revoke(ctx, "zhang-san", g.ID), grant.ErrUnknown, "%d days", days)
				require.ErrorIs(t, w.Revoke(ctx, "zhang-san", second.ID), grant.ErrUnknown, "%d days", days)
			}
		}
		w.clock.set(revoked.AddDate(0, 0, 21).Add(time.Microsecond))
		_, err := w.Purge(ctx, store.MaxPage)
		require.NoError(t, err)
		require.Empty(t, w.store.ofKind(t, "revocation"))
	})
	t.Run("64 uses and a revocation", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = grant.Unlimited })
		nodes := w.nodes()
		token := w.token("m1")
		var done atomic.Bool
		errs := together(64, func(i int) error {
			if i == 32 {
				err := nodes[0].RevokeAccount(ctx, "zhang-san")
				done.Store(true)
				return err
			}
			after := done.Load()
			_, err := nodes[i%2].Use(ctx, token, write)
			if after && err == nil {
				return errors.New("used after the revocation")
			}
			return err
		})
		winners(t, errs, grant.ErrRevoked)
	})
	t.Run("64 revocations and issues", func(t *testing.T) {
		w := newWorld(t, nil)
		nodes := w.nodes()
		errs := together(64, func(i int) error {
			switch i % 4 {
			case 0:
				return nodes[i/4%2].RevokeAccount(ctx, "zhang-san")
			case 1:
				return nodes[i/4%2].RevokeApp(ctx, "zhang-san", "bookbot", group)
			}
			for { // an issue that meets too many revocations says so, and may be done again
				got, err := nodes[i%2].Emit(ctx, mention(fmt.Sprint(i)))
				if err != nil && !strings.Contains(err.Error(), "changes faster") {
					return err
				}
				if len(got) == 1 {
					return nil
				}
			}
		})
		require.Equal(t, 64, winners(t, errs))
		require.Equal(t, map[string]int{"issued": 32, "revoked": 32}, w.whats("zhang-san"))
	})
	t.Run("by the app", func(t *testing.T) { // RFC 7009
		w := newWorld(t, two)
		g := w.emit(mention("m1"))
		token := grant.NewSecret(w.redeem(g))
		code := w.emit(mention("m2")).Code
		for _, credential := range []grant.Secret{token, code} {
			require.ErrorIs(t, w.RevokeToken(ctx, "weather", credential), grant.ErrUnknown, "another app's")
			require.NoError(t, w.RevokeToken(ctx, "bookbot", credential))
			require.NoError(t, w.RevokeToken(ctx, "bookbot", credential))
		}
		_, err := w.Use(ctx, token.Reveal(), write)
		require.ErrorIs(t, err, grant.ErrRevoked)
		_, _, err = w.Redeem(ctx, "bookbot", code)
		require.ErrorIs(t, err, grant.ErrRevoked)
		require.Equal(t, 2, w.whats("zhang-san")["revoked"])
		require.ErrorIs(t, w.RevokeToken(ctx, "bookbot", grant.NewSecret("bhst_x")), grant.ErrUnknown)
	})
	t.Run("a grant that is emitted again does not show its code", func(t *testing.T) {
		for name, revoke := range map[string]func(w *world, id string) error{
			"grant":   func(w *world, id string) error { return w.Revoke(ctx, "zhang-san", id) },
			"app":     func(w *world, _ string) error { return w.RevokeApp(ctx, "zhang-san", "bookbot", group) },
			"account": func(w *world, _ string) error { return w.RevokeAccount(ctx, "zhang-san") },
		} {
			w := newWorld(t, nil)
			require.NoError(t, revoke(w, w.emit(mention("m1")).ID), name)
			again := w.emit(mention("m1"))
			require.Equal(t, "revoked", again.State, name)
			require.True(t, again.Code.IsZero(), name)
		}
	})
}

// An app's ID is part of a grant's, and an account's name of a code: each way through them is open to all of them.
func TestNamesOfAppsAndAccounts(t *testing.T) { stores.Each(t, testNamesOfAppsAndAccounts) }

func testNamesOfAppsAndAccounts(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	for _, app := range []string{"a", "book.bot", "...", "-", "A-b_c.9", strings.Repeat("a", 64), strings.Repeat(".", 64)} {
		account := strings.Repeat("用", 256/3) // 255 bytes
		w := newWorld(t, func(c *grant.Config) {
			c.Apps = []grant.App{{ID: app, Actions: bookbot().Actions}, weather()}
			c.Triggers[0].App, c.Triggers[0].Deliver = app, grant.Push
			asked := onMention()
			asked.ID, asked.App, asked.Consent, asked.In = "asked", app, grant.Always, "room:*"
			c.Triggers = append(c.Triggers, asked)
		})
		nodes := w.nodes()
		ev := grant.Event{ID: "m1", Operation: grant.Mention, Account: account, App: app, Domain: group}
		g := w.emit(ev)
		require.LessOrEqual(t, len(g.Code.Reveal()), 569)
		again, err := nodes[1].Emit(ctx, ev)
		require.NoError(t, err)
		require.Equal(t, g.ID, again[0].ID)
		claimed, err := nodes[1].Claim(ctx, grant.Push, app, nil, 1, time.Second)
		require.NoError(t, err)
		require.Equal(t, g.ID, claimed[0].ID)
		token := w.redeem(claimed[0])
		d, err := nodes[1].Use(ctx, token, write)
		require.NoError(t, err)
		require.Equal(t, g.ID, d.Grant)
		require.ErrorIs(t, nodes[1].RevokeToken(ctx, "weather", grant.NewSecret(token)), grant.ErrUnknown)
		require.NoError(t, nodes[1].Revoke(ctx, account, d.Grant))
		_, err = w.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked)
		last := w.ledger(account)
		revoked := slices.IndexFunc(last, func(e grant.Entry) bool { return e.What == "revoked" })
		require.Equal(t, []string{account, app, g.ID}, []string{last[revoked].Account, last[revoked].App, last[revoked].Grant})
		require.Equal(t, app, w.store.ofKind(t, "revocation")[0].App)
		require.Equal(t, account, w.store.ofKind(t, "revocation")[0].Owner)

		ev.ID = "m2"
		g = w.emit(ev)
		require.NoError(t, nodes[1].RevokeToken(ctx, app, g.Code))
		_, _, err = w.Redeem(ctx, app, g.Code)
		require.ErrorIs(t, err, grant.ErrRevoked)

		ev.ID, ev.Domain = "m3", scope.MustDomain("room:1")
		g = w.emit(ev)
		decided, err := nodes[1].Decide(ctx, account, g.ID, true)
		require.NoError(t, err)
		require.Equal(t, g.ID, decided.ID)
		list, err := w.Grants(ctx, account, app, false)
		require.NoError(t, err)
		require.Equal(t, g.ID, list[0].ID)
	}
}

func TestP6Secret(t *testing.T) { stores.Each(t, testP6Secret) }

func testP6Secret(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	text := slog.New(slog.NewTextHandler(&log, nil))
	w := newWorld(t, func(c *grant.Config) {
		c.Observe = func(ctx context.Context, e grant.Entry) { logger.InfoContext(ctx, "entry", "entry", e) }
		asked := onMention()
		asked.ID, asked.App, asked.Consent, asked.Deliver = "asked", "weather", grant.Always, grant.Push
		c.Triggers = append(c.Triggers, asked)
	})
	g := w.emit(mention("m1"))
	ev := mention("m2")
	ev.App = "weather"
	pending := w.emit(ev)
	decided, err := w.Decide(ctx, "zhang-san", pending.ID, true)
	require.NoError(t, err)
	claimed, err := w.Claim(ctx, grant.Poll, "bookbot", nil, 1, time.Second)
	require.NoError(t, err)
	require.Len(t, claimed, 1)
	redeemed, token, err := w.Redeem(ctx, "bookbot", g.Code)
	require.NoError(t, err)
	d, err := w.Use(ctx, token.Reveal(), write)
	require.NoError(t, err)

	secrets := []string{g.Code.Reveal(), decided.Code.Reveal(), token.Reveal(), key.Reveal()}
	hidden := func(what, in string) {
		t.Helper()
		for _, s := range secrets {
			body := s[strings.IndexByte(s, '_')+1:] // without the prefix, and the encoding of it
			for _, form := range []string{body, base64.StdEncoding.EncodeToString([]byte(s)), fmt.Sprintf("%x", s), fmt.Sprintf("%X", s), fmt.Sprint([]byte(s))} {
				require.NotContains(t, in, form, what)
			}
		}
	}

	// At rest.
	for _, r := range w.store.everything(t) {
		hidden("the store", r.ID+" "+r.Owner+" "+r.App+" "+string(r.Data))
	}
	for _, batch := range w.store.batches() {
		for _, op := range batch {
			hidden("a write", op.Record.ID+" "+string(op.Record.Data))
		}
	}

	// In whatever prints, also deep inside other values.
	values := map[string]any{
		"grant": g, "*grant": &g, "decided": decided, "claimed": claimed, "redeemed": redeemed, "delegation": d,
		"secret": token, "*secret": &token, "code": g.Code, "config": w.config, "*config": &w.config, "engine": w.Engine,
		"inside": struct {
			In     any
			hidden grant.Secret
		}{map[string][]grant.Secret{"a": {token, g.Code}}, token},
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			hidden(name+" "+verb, fmt.Sprintf(verb, v))
		}
		hidden(name, fmt.Sprint(v))
		if name != "config" && name != "*config" { // functions have no JSON
			b, err := json.Marshal(v)
			require.NoError(t, err, name)
			hidden(name+" JSON", string(b))
		}
		logger.Info("value", "v", v)
		text.Info("value", "v", v, slog.Group("g", "v", v))
	}
	require.Contains(t, fmt.Sprintf("%+v", g), "[redacted]")
	require.Contains(t, fmt.Sprintf("%#v", w.config), "[redacted]")

	// In errors.
	fault := func(err error) {
		t.Helper()
		require.Error(t, err)
		hidden("an error", err.Error())
		hidden("an error", fmt.Sprintf("%+v %#v", err, err))
		logger.Error("failed", "err", err)
	}
	_, _, err = w.Redeem(ctx, "bookbot", g.Code)
	fault(err)
	_, _, err = w.Redeem(ctx, "weather", g.Code)
	fault(err)
	_, _, err = w.Redeem(ctx, "bookbot", token)
	fault(err)
	_, err = w.Use(ctx, g.Code.Reveal(), write)
	fault(err)
	_, err = w.Use(ctx, token.Reveal()+"x", write)
	fault(err)
	_, err = w.Use(ctx, token.Reveal(), scope.MustParse("group:1/message.write"))
	fault(err)
	_, err = w.Inspect(ctx, grant.NewSecret(token.Reveal()[1:]))
	fault(err)
	fault(w.RevokeToken(ctx, "weather", token))
	fault(w.Revoke(ctx, "zhang-san", token.Reveal()))
	_, err = w.Decide(ctx, "zhang-san", g.Code.Reveal(), true)
	fault(err)
	_, err = grant.NewEngine(grant.Config{Key: grant.NewSecret("too short"), Sealing: []grant.Secret{grant.NewSecret("short too")}})
	fault(err)
	require.NotContains(t, err.Error(), "too short")
	w.clock.advance(time.Hour)
	_, err = w.Use(ctx, token.Reveal(), write)
	fault(err)
	require.NoError(t, w.Flush(ctx))
	hidden("the log", log.String())
	for _, e := range w.ledger("zhang-san") {
		hidden("the ledger", fmt.Sprintf("%+v", e))
	}
	// A one-time code in a link lives for at most a minute; see also TestP4Narrow.
}

func TestP7NoLoops(t *testing.T) { stores.Each(t, testP7NoLoops) }

func testP7NoLoops(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	w := newWorld(t, func(c *grant.Config) {
		chained := onMention()
		chained.ID, chained.App, chained.Chain = "chained", "weather", true
		c.Triggers = append(c.Triggers, chained)
	})
	act := func(id, app, by string) grant.Event {
		ev := mention(id)
		ev.App, ev.By = app, by
		return ev
	}
	g := w.emit(mention("m0"))
	got, err := w.Emit(ctx, act("m1", "bookbot", g.ID))
	require.NoError(t, err)
	require.Nil(t, got, "what is done with a token triggers nothing")

	// Unless a trigger says so, and not for ever.
	for depth := 1; depth <= 4; depth++ {
		g = w.emit(act(fmt.Sprint("d", depth), "weather", g.ID))
	}
	w.store.reset()
	got, err = w.Emit(ctx, act("d5", "weather", g.ID))
	require.ErrorIs(t, err, grant.ErrLimited)
	require.Empty(t, got)
	require.Zero(t, w.store.count("apply"))

	// The grant is one of the account that acts.
	ev := act("m2", "weather", g.ID)
	ev.Account = "li-si"
	for name, by := range map[string]grant.Event{
		"somebody else's": ev, "made up": act("m3", "weather", strings.Repeat("a", 22)), "of another aggregate": act("m4", "weather", "x.y"),
		"huge": act("m5", "weather", strings.Repeat("a", 5000)),
	} {
		_, err = w.Emit(ctx, by)
		require.ErrorIs(t, err, grant.ErrUnknown, name)
		require.Less(t, len(err.Error()), 300, name)
	}
}

func TestP8OnTheRecord(t *testing.T) { stores.Each(t, testP8OnTheRecord) }

func testP8OnTheRecord(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	w := newWorld(t, func(c *grant.Config) {
		asked := onMention()
		asked.ID, asked.App, asked.Consent = "asked", "weather", grant.Always
		c.Triggers = append(c.Triggers, asked)
	})
	ask := func(id string) grant.Grant {
		ev := mention(id)
		ev.App = "weather"
		return w.emit(ev)
	}
	var g grant.Grant
	var token string
	var yes, no grant.Grant
	for _, step := range []struct {
		what, app, kind, scope string
		do                     func() error
	}{
		{"issued", "bookbot", "grant", "group:42/message.write", func() error { g = w.emit(mention("m1")); return nil }},
		{"redeemed", "bookbot", "token", "group:42/message.write", func() error { token = w.redeem(g); return nil }},
		{"used", "bookbot", "token", "group:42/thread:7/message.write", func() error {
			_, err := w.Use(ctx, token, scope.MustParse("group:42/thread:7/message.write"))
			return err
		}},
		{"pending", "weather", "grant", "group:42/message.write", func() error { yes = ask("m2"); return nil }},
		{"issued", "weather", "grant", "group:42/message.write", func() error { _, err := w.Decide(ctx, "zhang-san", yes.ID, true); return err }},
		{"pending", "weather", "grant", "group:42/message.write", func() error { no = ask("m3"); return nil }},
		{"denied", "weather", "grant", "group:42/message.write", func() error { _, err := w.Decide(ctx, "zhang-san", no.ID, false); return err }},
		{"revoked", "bookbot", "revocation", "", func() error { return w.Revoke(ctx, "zhang-san", g.ID) }},
		{"revoked", "bookbot", "revocation", "group:42", func() error {
			return w.RevokeApp(ctx, "zhang-san", "bookbot", scope.MustDomain("group:42/thread:7"))
		}},
		{"revoked", "", "revocation", "", func() error { return w.RevokeAccount(ctx, "zhang-san") }},
	} {
		w.clock.advance(time.Second)
		w.store.reset()
		require.NoError(t, step.do(), step.what)
		var found *store.Record
		for _, batch := range w.store.batches() {
			kinds := map[string]store.Record{}
			for _, op := range batch {
				kinds[op.Record.Kind] = op.Record
			}
			r, ok := kinds["ledger"]
			require.True(t, ok, "%s: a write without the ledger", step.what)
			require.Contains(t, kinds, step.kind, "%s: in the same write", step.what)
			found = &r
		}
		require.NotNil(t, found, step.what)
		require.Equal(t, "zhang-san", found.Owner)
		require.Equal(t, step.app, found.App)
		entries := w.ledger("zhang-san")
		e := entries[0]
		require.Equal(t, step.what, e.What)
		require.Equal(t, "zhang-san", e.Account)
		require.Equal(t, step.app, e.App)
		require.Equal(t, step.scope, e.Scope)
		require.Equal(t, w.clock.now().UTC(), e.At)
		require.Equal(t, 1, e.Count)

		// When that write fails there is neither.
		before := len(w.store.everything(t))
		w.store.before = func(int, string) error { return errStore }
		_, err := w.Emit(ctx, mention("never"))
		require.ErrorIs(t, err, errStore)
		w.store.reset()
		require.Len(t, w.store.everything(t), before)
	}

	t.Run("refusals", func(t *testing.T) {
		var seen []grant.Entry
		w := newWorld(t, func(c *grant.Config) {
			c.Triggers[0].Uses = 1
			c.Observe = func(_ context.Context, e grant.Entry) { seen = append(seen, e) }
		})
		g := w.emit(mention("m1"))
		token := w.redeem(g)
		_, err := w.Use(ctx, token, write)
		require.NoError(t, err)
		seen = nil
		many := s.Some(1000)
		for range many {
			_, err = w.Use(ctx, token, write)
			require.ErrorIs(t, err, grant.ErrUsedUp)
		}
		_, err = w.Use(ctx, token, scope.MustParse("group:9/message.write"))
		require.ErrorIs(t, err, scope.ErrWrongDomain)
		_, _, err = w.Redeem(ctx, "weather", g.Code)
		require.ErrorIs(t, err, grant.ErrUnknown)
		_, err = w.Use(ctx, token+"x", write) // a forgery is nobody's
		require.ErrorIs(t, err, grant.ErrUnknown)
		require.Len(t, seen, many+2, "the observer hears each at once")

		w.clock.advance(time.Second)
		w.store.reset()
		require.NoError(t, w.Flush(ctx))
		require.Equal(t, 3, w.store.count("apply"), "and repeats are counted")
		got := map[string]grant.Entry{}
		for _, e := range w.ledger("zhang-san") {
			if e.What == "refused" {
				require.Equal(t, start, e.At, "when it began")
				require.Equal(t, g.ID, e.Grant)
				got[e.Reason] = e
			}
		}
		require.Len(t, got, 3)
		require.Equal(t, many, got["used_up"].Count)
		require.Equal(t, "group:42/message.write", got["used_up"].Scope)
		require.Equal(t, 1, got["wrong_domain"].Count)
		require.Equal(t, "weather", got["unknown"].App, "by whom, also when it is the wrong one")
		w.store.reset()
		require.NoError(t, w.Flush(ctx))
		require.Zero(t, w.store.count("apply"), "nothing twice")
	})
}

func TestP9CheapToRefuse(t *testing.T) { stores.Each(t, testP9CheapToRefuse) }

func testP9CheapToRefuse(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	w := newWorld(t, nil)
	g := w.emit(mention("m1"))
	code, token := g.Code.Reveal(), w.token("m2")
	other, err := grant.NewEngine(func() grant.Config {
		c := w.config
		c.Store, c.Key = store.NewMemory(), grant.NewSecret(strings.Repeat("x", 32))
		return c
	}())
	require.NoError(t, err)
	foreign, err := other.Emit(ctx, mention("m1"))
	require.NoError(t, err)
	_, foreignToken, err := other.Redeem(ctx, "bookbot", foreign[0].Code)
	require.NoError(t, err)

	w.store.reset()
	no := func(name, credential string) {
		t.Helper()
		secret := grant.NewSecret(credential)
		_, err := w.Use(ctx, credential, write)
		require.ErrorIs(t, err, grant.ErrUnknown, name)
		_, err = w.UseFunc(ctx, credential, func() (scope.Scope, error) {
			return scope.Scope{}, errors.New("asked for a forged token")
		})
		require.ErrorIs(t, err, grant.ErrUnknown, name)
		_, err = w.Inspect(ctx, secret)
		require.ErrorIs(t, err, grant.ErrUnknown, name)
		_, _, err = w.Redeem(ctx, "bookbot", secret)
		require.ErrorIs(t, err, grant.ErrUnknown, name)
		require.Empty(t, grant.Reason(err))
		require.Zero(t, w.store.total(), "%s: asked the store", name)
	}
	no("empty", "")
	no("a prefix", "bhst_")
	no("made up", "bhst_"+strings.Repeat("A", 300))
	no("huge", "bhst_"+strings.Repeat("A", 1<<20))
	no("not base64", "bhst_"+strings.Repeat("!", 300))
	no("of another key", foreignToken.Reveal())
	no("a code of another key", foreign[0].Code.Reveal())
	for _, real := range []string{token, code} {
		body := real[5:]
		no("without its prefix", body)
		no("in capitals", strings.ToUpper(real))
		no("padded", real+"=")
		no("in the other alphabet", real[:5]+base64.RawStdEncoding.EncodeToString(mustDecode(t, body))+"+")
		no("with a line break", real[:40]+"\r\n"+real[40:])
		no("with a line break at the end", real+"\n")
		no("with a space", " "+real)
		no("cut", real[:len(real)-4])
		no("doubled", real+body)
		raw := mustDecode(t, body)
		for i := range raw { // key ID, nonce, ciphertext, tag
			for _, bit := range []byte{1, 0x80} {
				changed := bytes.Clone(raw)
				changed[i] ^= bit
				no(fmt.Sprint("byte ", i), real[:5]+base64.RawURLEncoding.EncodeToString(changed))
			}
		}
		for i := range body { // each character, the last of which may have bits to spare
			b := []byte(real)
			b[5+i] = "AB"[b2i(b[5+i] == 'A')]
			no(fmt.Sprint("character ", i), string(b))
		}
	}
	// For another purpose: a code is no token, a token is no code.
	no("a code's body as a token", "bhst_"+code[5:])
	no("a token's body as a code", "bhsc_"+token[5:])
	_, err = w.Use(ctx, code, write)
	require.ErrorIs(t, err, grant.ErrUnknown)
	_, _, err = w.Redeem(ctx, "bookbot", grant.NewSecret(token))
	require.ErrorIs(t, err, grant.ErrUnknown)
	require.Zero(t, w.store.total())
	require.NoError(t, w.Flush(ctx))
	require.Zero(t, w.store.total(), "nor is it in the ledger")

	// Real ones that are refused for what they carry cost no write either.
	for _, s := range []string{"group:9/message.write", "group:42/member.read"} {
		_, err = w.Use(ctx, token, scope.MustParse(s))
		require.Error(t, err)
	}
	w.clock.advance(11 * time.Minute)
	_, err = w.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrExpired)
	require.Zero(t, w.store.total())
	w.clock.advance(-11 * time.Minute)
	_, err = w.Use(ctx, token, write)
	require.NoError(t, err)
}

func mustDecode(t testing.TB, s string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(s)
	require.NoError(t, err)
	return b
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestP10Honest(t *testing.T) { stores.Each(t, testP10Honest) }

func testP10Honest(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = 1 })
	in := func(domain, action string) scope.Scope { return scope.MustParse(domain + "/" + action) }
	why := func(reason string, err, is error) {
		t.Helper()
		require.ErrorIs(t, err, is)
		require.Equal(t, reason, grant.Reason(err))
	}
	token := w.token("m1")
	_, err := w.Use(ctx, token, in("group:9", "message.write"))
	why("wrong_domain", err, scope.ErrWrongDomain)
	_, err = w.Use(ctx, token, in("group:42", "message.read"))
	why("wrong_action", err, scope.ErrWrongAction)
	w.setPermit(allow())
	_, err = w.Use(ctx, token, write)
	why("rights_changed", err, grant.ErrDenied)
	w.setPermit(nil)
	_, err = w.Use(ctx, token, write)
	require.NoError(t, err)
	_, err = w.Use(ctx, token, write)
	why("used_up", err, grant.ErrUsedUp)
	_, err = w.Inspect(ctx, grant.NewSecret(token))
	why("used_up", err, grant.ErrUsedUp)

	second := w.emit(mention("m2"))
	token = w.redeem(second)
	_, _, err = w.Redeem(ctx, "bookbot", second.Code)
	why("used_up", err, grant.ErrUsedUp)
	require.NoError(t, w.Revoke(ctx, "zhang-san", second.ID))
	_, err = w.Use(ctx, token, write)
	why("revoked", err, grant.ErrRevoked)

	third := w.emit(mention("m3"))
	token = w.token("m4")
	w.clock.advance(time.Minute)
	_, _, err = w.Redeem(ctx, "bookbot", third.Code)
	why("expired", err, grant.ErrExpired)
	w.clock.advance(9 * time.Minute)
	_, err = w.Use(ctx, token, write)
	why("expired", err, grant.ErrExpired)
	_, err = w.Inspect(ctx, grant.NewSecret(token))
	why("expired", err, grant.ErrExpired)

	// A stranger gets one and the same answer.
	fourth := w.emit(mention("m5"))
	_, _, stranger := w.Redeem(ctx, "weather", fourth.Code)
	why("", stranger, grant.ErrUnknown)
	_, err = w.Use(ctx, "bhst_made-up", write)
	why("", err, grant.ErrUnknown)

	// What goes wrong inside has no reason.
	w.store.before = func(int, string) error { return errStore }
	token = w.redeemQuietly(fourth)
	_, err = w.Use(ctx, token, write)
	why("", err, errStore)
	require.Empty(t, grant.Reason(nil))
}

// redeemQuietly redeems past the faults that a test has put into the store.
func (w *world) redeemQuietly(g grant.Grant) string {
	w.t.Helper()
	_, token, err := w.In(w.store.Store).Redeem(ctx, g.App, g.Code)
	require.NoError(w.t, err)
	return token.Reveal()
}

// With a clock that stands still, as clocks of tests do, the ledger still tells what came first.
func TestLedgerKeepsOrder(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = 50 })
	token := w.token("m1")
	for range 50 {
		_, err := w.Use(ctx, token, write)
		require.NoError(t, err)
	}
	require.NoError(t, w.RevokeAccount(ctx, "zhang-san"))
	var got []string
	for _, e := range w.ledger("zhang-san") {
		got = append(got, e.What)
	}
	want := append([]string{"revoked"}, slices.Repeat([]string{"used"}, 50)...)
	require.Equal(t, append(want, "redeemed", "issued"), got)
}
