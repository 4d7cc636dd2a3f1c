package grant_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

func pushes(c *grant.Config) {
	c.Triggers[0].Deliver, c.Triggers[0].RedeemWithin = grant.Push, time.Hour
	other := onMention()
	other.ID, other.App, other.Deliver = "other", "weather", grant.Push
	link := grant.Trigger{App: "bookbot", On: grant.LinkOpen, In: "*", Allow: []string{"message.write"}}
	c.Triggers = append(c.Triggers, other, link)
}

func TestOutbox(t *testing.T) {
	const lease = 10 * time.Second
	claim := func(w *world, e *grant.Engine, app string, not ...string) []grant.Grant {
		w.t.Helper()
		got, err := e.Claim(ctx, grant.Push, app, not, 100, lease)
		require.NoError(w.t, err)
		return got
	}
	t.Run("lease", func(t *testing.T) {
		w := newWorld(t, pushes)
		nodes := w.nodes()
		g := w.emit(mention("m1"))
		got := claim(w, nodes[1], "")
		require.Len(t, got, 1)
		require.Equal(t, exported(g), exported(got[0]))
		require.Equal(t, g.Code.Reveal(), got[0].Code.Reveal())
		w.clock.advance(lease - time.Microsecond)
		require.Empty(t, claim(w, nodes[0], ""))
		w.clock.advance(time.Microsecond)
		again := claim(w, nodes[0], "")
		require.Len(t, again, 1, "of which nothing is heard comes again")
		require.Zero(t, again[0].Tries)

		// The worker that comes back too late changes nothing.
		require.NoError(t, nodes[1].Delivered(ctx, got[0]))
		require.NoError(t, nodes[1].Postpone(ctx, got[0], w.clock.now()))
		require.Empty(t, claim(w, nodes[1], ""))
		require.Len(t, w.store.ofKind(t, "push"), 1)

		require.NoError(t, nodes[0].Delivered(ctx, again[0]))
		require.Empty(t, w.store.ofKind(t, "push"))
		w.clock.advance(lease)
		require.Empty(t, claim(w, nodes[0], ""))
		w.redeem(again[0])
	})
	t.Run("postpone", func(t *testing.T) {
		w := newWorld(t, pushes)
		w.emit(mention("m1"))
		for try := range 5 {
			got := claim(w, w.Engine, "")
			require.Len(t, got, 1)
			require.Equal(t, try, got[0].Tries)
			until := w.clock.now().Add(time.Minute << try)
			require.NoError(t, w.Postpone(ctx, got[0], until))
			w.clock.set(until.Add(-time.Microsecond))
			require.Empty(t, claim(w, w.Engine, ""))
			w.clock.set(until)
		}
	})
	t.Run("by app", func(t *testing.T) {
		w := newWorld(t, pushes)
		w.emit(mention("m1"))
		ev := mention("m2")
		ev.App = "weather"
		w.emit(ev)
		require.Empty(t, claim(w, w.Engine, "", "weather", "bookbot"))
		require.Empty(t, claim(w, w.Engine, "bookbot", "bookbot"))
		got := claim(w, w.Engine, "", "bookbot")
		require.Len(t, got, 1)
		require.Equal(t, "weather", got[0].App)
		got = claim(w, w.Engine, "bookbot")
		require.Len(t, got, 1)
		require.Equal(t, "bookbot", got[0].App)
		polled, err := w.Claim(ctx, grant.Poll, "", nil, 10, lease)
		require.NoError(t, err)
		require.Empty(t, polled)
	})
	t.Run("64 workers", func(t *testing.T) {
		w := newWorld(t, pushes)
		nodes := w.nodes()
		for i := range 100 {
			ev := mention(fmt.Sprint(i))
			ev.Account = fmt.Sprint("user", i%7)
			w.emit(ev)
		}
		found := make([][]grant.Grant, 64)
		errs := together(64, func(i int) (err error) {
			found[i], err = nodes[i%2].Claim(ctx, grant.Push, "", nil, 3, lease)
			return err
		})
		require.Equal(t, 64, winners(t, errs))
		seen := apart(t, found)
		require.Len(t, seen, 100)
	})
	t.Run("what ends a delivery", func(t *testing.T) {
		for name, end := range map[string]func(w *world, g grant.Grant) error{
			"redeemed":        func(w *world, g grant.Grant) error { w.redeem(g); return nil },
			"revoked":         func(w *world, g grant.Grant) error { return w.Revoke(ctx, g.Account, g.ID) },
			"app revoked":     func(w *world, g grant.Grant) error { return w.RevokeApp(ctx, g.Account, g.App, group) },
			"account revoked": func(w *world, g grant.Grant) error { return w.RevokeAccount(ctx, g.Account) },
			"too late":        func(w *world, _ grant.Grant) error { w.clock.advance(time.Hour); return nil },
		} {
			w := newWorld(t, pushes)
			g := w.emit(mention("m1"))
			claimed := claim(w, w.Engine, "")
			require.Len(t, claimed, 1)
			require.NoError(t, end(w, g), name)
			require.NoError(t, w.Postpone(ctx, claimed[0], w.clock.now()), name)
			require.Empty(t, claim(w, w.Engine, ""), name)
			require.Empty(t, w.store.ofKind(t, "push"), "%s: dropped on the way", name)
		}
	})
	t.Run("redirect waits for the user", func(t *testing.T) {
		w := newWorld(t, pushes)
		g := w.emit(grant.Event{ID: "l1", Operation: grant.LinkOpen, Account: "zhang-san", Domain: group, Target: "https://bookbot.example/"})
		require.Equal(t, grant.Redirect, g.Deliver)
		require.Len(t, w.store.ofKind(t, "redirect"), 1)
		require.Empty(t, claim(w, w.Engine, ""))
		_, err := w.Claim(ctx, grant.Redirect, "", nil, 1, lease)
		require.ErrorIs(t, err, grant.ErrInvalid)
		w.redeem(g)
		require.Empty(t, w.store.ofKind(t, "redirect"))
	})
	t.Run("damaged records", func(t *testing.T) {
		w := newWorld(t, pushes)
		good := w.emit(mention("good"))
		bad := map[string]grant.Grant{"box": w.emit(mention("box")), "code": w.emit(mention("code")), "grant": w.emit(mention("grant")), "empty": w.emit(mention("empty"))}
		harm := func(kind, id string, data string) {
			for _, r := range w.store.ofKind(t, kind) {
				if strings.HasSuffix(r.ID, id) {
					r.Data = []byte(data)
					out, err := w.store.Store.Apply(ctx, w.clock.now(), []store.Op{store.Put(r)})
					require.NoError(t, err)
					require.True(t, out.Applied())
				}
			}
		}
		harm("push", bad["box"].ID, "not JSON")
		harm("push", bad["code"].ID, `{"code":"AAAA"}`)
		harm("grant", bad["grant"].ID, `{"trigger":1}`)
		harm("grant", bad["empty"].ID, `{}`)
		got, err := w.Claim(ctx, grant.Push, "", nil, 100, lease)
		require.Error(t, err)
		require.Len(t, got, 1, "one damaged record keeps nobody from the others")
		require.Equal(t, good.ID, got[0].ID)
		for _, g := range bad {
			require.ErrorContains(t, err, g.ID, "the error names it")
		}
		require.NotContains(t, err.Error(), "AAAA")
		_, _, err = w.Redeem(ctx, "bookbot", bad["grant"].Code)
		require.ErrorContains(t, err, bad["grant"].ID)
		// Too late, they go as all others do.
		w.clock.advance(time.Hour)
		require.Empty(t, claim(w, w.Engine, ""))
		require.Empty(t, w.store.ofKind(t, "push"))
		// A list leaves them out, and says so.
		list, err := w.Grants(ctx, "zhang-san", "", true)
		require.ErrorContains(t, err, bad["grant"].ID)
		require.ErrorContains(t, err, bad["empty"].ID)
		require.Len(t, list, 3)
	})
	t.Run("faults of the caller", func(t *testing.T) {
		w := newWorld(t, pushes)
		g := w.emit(mention("m1"))
		for _, n := range []int{0, -1, 1001} {
			_, err := w.Claim(ctx, grant.Push, "", nil, n, lease)
			require.ErrorIs(t, err, grant.ErrInvalid)
		}
		for _, d := range []time.Duration{0, -1} {
			_, err := w.Claim(ctx, grant.Push, "", nil, 1, d)
			require.ErrorIs(t, err, grant.ErrInvalid)
		}
		require.ErrorIs(t, w.Delivered(ctx, g), grant.ErrInvalid, "not from Claim")
		require.ErrorIs(t, w.Postpone(ctx, g, w.clock.now()), grant.ErrInvalid)
		claimed := claim(w, w.Engine, "")
		require.ErrorIs(t, w.Postpone(ctx, claimed[0], time.Time{}), grant.ErrInvalid, "never is no time")
	})
}

func sealingKey(s string) grant.Secret { return grant.NewSecret(strings.Repeat(s, 32)) }

func TestSealingKeysRotate(t *testing.T) {
	w := newWorld(t, pushes)
	step := func(keys ...grant.Secret) *grant.Engine {
		w.config.Sealing = keys
		return w.another()
	}
	// A node before the first rotation, when Key seals; then each step, while another node is a step behind.
	nodes := []*grant.Engine{
		step(),
		step(key, sealingKey("1")),
		step(sealingKey("1"), key),
		step(sealingKey("1")),
		step(sealingKey("1"), sealingKey("2")),
		step(sealingKey("2"), sealingKey("1")),
	}
	for i := range nodes[1:] {
		for _, pair := range [][2]*grant.Engine{{nodes[i], nodes[i+1]}, {nodes[i+1], nodes[i]}} {
			w.clock.advance(time.Second)
			got, err := pair[0].Emit(ctx, mention(w.clock.now().String()))
			require.NoError(t, err)
			claimed, err := pair[1].Claim(ctx, grant.Push, "", nil, 10, time.Hour)
			require.NoError(t, err)
			require.Len(t, claimed, 1, "step %d", i)
			require.Equal(t, got[0].Code.Reveal(), claimed[0].Code.Reveal())
			_, token, err := pair[1].Redeem(ctx, "bookbot", claimed[0].Code)
			require.NoError(t, err)
			_, err = pair[0].Use(ctx, token.Reveal(), write)
			require.NoError(t, err)
		}
	}
	// Two steps apart they do not understand each other, and ask no store.
	got, err := nodes[5].Emit(ctx, mention("m1"))
	require.NoError(t, err)
	held, err := nodes[5].Emit(ctx, mention("m2"))
	require.NoError(t, err)
	_, token, err := nodes[5].Redeem(ctx, "bookbot", held[0].Code)
	require.NoError(t, err)
	w.store.reset()
	_, _, err = nodes[2].Redeem(ctx, "bookbot", got[0].Code)
	require.ErrorIs(t, err, grant.ErrUnknown)
	_, err = nodes[2].Use(ctx, token.Reveal(), write)
	require.ErrorIs(t, err, grant.ErrUnknown)
	require.Zero(t, w.store.total())
	_, err = nodes[2].Claim(ctx, grant.Push, "", nil, 10, time.Second)
	require.ErrorContains(t, err, "a key that this engine does not have")
	_, err = nodes[2].Emit(ctx, mention("m1"))
	require.ErrorContains(t, err, "a key that this engine does not have")
}

func TestAnotherRootKeyIsAnotherServer(t *testing.T) {
	w := newWorld(t, pushes)
	g := w.emit(mention("m1"))
	token := w.token("m2")
	w.config.Key, w.config.Sealing = sealingKey("x"), []grant.Secret{key}
	other := w.another()
	w.store.reset()
	_, _, err := other.Redeem(ctx, "bookbot", g.Code)
	require.ErrorIs(t, err, grant.ErrUnknown)
	_, err = other.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrUnknown, "with the same sealing keys as well")
	require.Zero(t, w.store.total())
	list, err := other.Grants(ctx, "zhang-san", "", true)
	require.NoError(t, err)
	require.Empty(t, list)
	require.NotEqual(t, w.Name("bookbot", "zhang-san"), other.Name("bookbot", "zhang-san"))
}

// A worker that dies keeps no code for itself to the end: whatever the lease, another has time for a try.
func TestLeaseEndsBeforeTheCode(t *testing.T) {
	const lease = 30 * time.Second
	w := newWorld(t, func(c *grant.Config) {
		pushes(c)
		c.Triggers[0].RedeemWithin = 8 * time.Second
		c.Triggers[1].RedeemWithin = time.Minute
	})
	g := w.emit(mention("m1"))
	var left []time.Duration
	for {
		got, err := w.Claim(ctx, grant.Push, "", nil, 100, lease) // and dies with it
		require.NoError(t, err)
		if len(got) == 0 {
			break
		}
		require.Len(t, got, 1)
		require.Equal(t, g.Code.Reveal(), got[0].Code.Reveal())
		require.Equal(t, w.store.ofKind(t, "push")[0].Due, got[0].Leased)
		left = append(left, g.RedeemBy.Sub(w.clock.now()))
		w.clock.set(got[0].Leased.Add(-time.Microsecond))
		again, err := w.Claim(ctx, grant.Push, "", nil, 100, lease)
		require.NoError(t, err)
		require.Empty(t, again)
		w.clock.set(got[0].Leased)
	}
	require.Equal(t, []time.Duration{8 * time.Second, 4 * time.Second, 2 * time.Second, time.Second, time.Second / 2}, left[:5])
	require.Equal(t, time.Microsecond, left[len(left)-1])

	// What it holds is its own to end and to put off.
	for name, end := range map[string]func(g grant.Grant) error{
		"delivered": func(g grant.Grant) error { return w.Delivered(ctx, g) },
		"postponed": func(g grant.Grant) error { return w.Postpone(ctx, g, g.RedeemBy) },
	} {
		w.emit(mention(name))
		got, err := w.Claim(ctx, grant.Push, "", nil, 100, lease)
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.NoError(t, end(got[0]))
		w.clock.set(got[0].Leased)
		again, err := w.Claim(ctx, grant.Push, "", nil, 100, lease)
		require.NoError(t, err)
		require.Empty(t, again, name)
	}

	// Where there is time, nothing is written for it.
	ev := mention("long")
	ev.App = "weather"
	w.emit(ev)
	w.store.reset()
	got, err := w.Claim(ctx, grant.Push, "weather", nil, 100, lease)
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.WithinDuration(t, w.clock.now().Add(lease), got[0].Leased, 0)
	require.Empty(t, w.store.batches())
}

// However many deliveries wait for a suspended trigger, a Claim costs little, and what is behind them comes out.
func TestClaimPassesSuspended(t *testing.T) {
	const lease = 10 * time.Second
	live := func(c *grant.Config) {
		pushes(c)
		c.Triggers = append(c.Triggers, grant.Trigger{ID: "live", App: "bookbot", On: grant.Command, In: "group:*", Allow: []string{"message.write"}, Deliver: grant.Push, RedeemWithin: time.Hour})
	}
	// backlog issues n for the trigger "mention" and suspends it.
	backlog := func(w *world, n int) {
		for i := range n {
			ev := mention(fmt.Sprint("waits", i))
			ev.Account = fmt.Sprint("user", i%7)
			w.emit(ev)
		}
		w.change(change{suspend: []string{"mention"}})
		w.clock.advance(time.Microsecond)
	}
	other := func(w *world, id string) grant.Grant {
		ev := mention(id)
		ev.App = "weather"
		return w.emit(ev)
	}
	same := func(w *world, id string) grant.Grant {
		ev := mention(id)
		ev.Operation, ev.Target, ev.Text = grant.Command, "/find", ""
		return w.emit(ev)
	}
	claim := func(w *world, n int) (ids []string) {
		w.t.Helper()
		got, err := w.Claim(ctx, grant.Push, "", nil, n, lease)
		require.NoError(w.t, err)
		require.LessOrEqual(w.t, len(got), n)
		for _, g := range got {
			require.NotZero(w.t, g.Code)
			ids = append(ids, g.ID)
		}
		return ids
	}
	// all claims until nothing is due, and requires that nothing comes twice.
	all := func(w *world, n int) map[string]bool {
		w.t.Helper()
		seen := map[string]bool{}
		for {
			got := claim(w, n)
			for _, id := range got {
				require.False(w.t, seen[id], "%s comes twice", id)
				seen[id] = true
			}
			if len(got) == 0 {
				return seen
			}
		}
	}
	for _, n := range []int{1, 4, 100, 1000} {
		t.Run(fmt.Sprintf("500, %d at a time", n), func(t *testing.T) {
			w := alone(t, live)
			backlog(w, 500)
			require.NoError(t, w.RevokeAccount(ctx, "user3"))
			want := []string{other(w, "m1").ID, same(w, "m2").ID}
			w.store.reset()
			got := claim(w, n)
			revoked := 71
			require.Less(t, w.store.total(), 60+revoked, "%v", w.store.calls)
			require.LessOrEqual(t, w.store.count("apply"), revoked+1, "which are dropped, and one is put back")
			require.Len(t, w.store.ofKind(t, "push"), 500-revoked+2)
			if n == 1 {
				got = append(got, claim(w, n)...)
			}
			require.ElementsMatch(t, want, got)
			require.NoError(t, w.Look(ctx))
			w.store.reset()
			require.Empty(t, claim(w, n))
			require.Equal(t, map[string]int{"claim": 1}, w.store.calls, "until the lease is over")

			w.change(change{resume: []string{"mention"}})
			require.Empty(t, claim(w, n))
			w.clock.advance(lease)
			require.Len(t, all(w, n), 500-revoked+2, "all of them come again")
		})
	}
	t.Run("more than one Claim goes through", func(t *testing.T) {
		w := alone(t, live)
		backlog(w, 2500)
		want := []string{other(w, "m1").ID, same(w, "m2").ID}
		w.store.reset()
		require.Equal(t, want[:1], claim(w, 4), "another app's come at once")
		require.Less(t, w.store.total(), 60, "%v", w.store.calls)
		require.Empty(t, claim(w, 4))
		require.Equal(t, want[1:], claim(w, 4), "the app's own come soon")
		w.change(change{resume: []string{"mention"}})
		w.clock.advance(lease)
		require.Len(t, all(w, 1000), 2502)
	})
	t.Run("an app alone", func(t *testing.T) {
		w := alone(t, live)
		backlog(w, 2500)
		want := same(w, "m1").ID
		var got []grant.Grant
		for range 3 {
			w.store.reset()
			some, err := w.Claim(ctx, grant.Push, "bookbot", nil, 4, lease)
			require.NoError(t, err)
			require.Less(t, w.store.total(), 60, "%v", w.store.calls)
			got = append(got, some...)
		}
		require.Len(t, got, 1)
		require.Equal(t, want, got[0].ID)
	})
	t.Run("what is claimed beyond n is put back", func(t *testing.T) {
		w := alone(t, live)
		backlog(w, 100)
		for i := range 200 {
			same(w, fmt.Sprint("m", i))
		}
		require.Len(t, claim(w, 4), 4)
		require.Len(t, all(w, 4), 196)
		w.clock.advance(lease)
		require.Len(t, all(w, 4), 200)
		w.clock.advance(lease)
		w.change(change{resume: []string{"mention"}})
		require.Len(t, all(w, 7), 300)
	})
	t.Run("64 workers", func(t *testing.T) {
		w := alone(t, live)
		backlog(w, 300)
		for i := range 100 {
			same(w, fmt.Sprint("m", i))
		}
		found := make([][]grant.Grant, 64)
		errs := together(64, func(i int) (err error) {
			found[i], err = w.Claim(ctx, grant.Push, "", nil, 1, lease)
			return err
		})
		require.Equal(t, 64, winners(t, errs))
		seen := apart(t, found)
		require.Len(t, all(w, 4), 100-len(seen), "what nobody got is due")
	})
}

// A store that cannot read one record fails the call that asks for it along with others.
func TestClaimAroundUnreadable(t *testing.T) {
	for _, kind := range []string{"grant", "revocation"} {
		var bad string
		w := newWorld(t, func(c *grant.Config) {
			pushes(c)
			c.Store = unreadable{c.Store, kind, &bad}
		})
		for i := range 9 {
			w.emit(mention(fmt.Sprint("m", i)))
		}
		g := w.emit(mention("bad"))
		bad = g.ID
		got, err := w.Claim(ctx, grant.Push, "", nil, 10, 10*time.Second)
		require.ErrorIs(t, err, errStore)
		require.Len(t, got, 9, kind)
		require.Len(t, w.store.ofKind(t, "push"), 10, "it is not dropped")
		bad = ""
		w.clock.advance(10 * time.Second)
		got, err = w.Claim(ctx, grant.Push, "", nil, 10, 10*time.Second)
		require.NoError(t, err)
		require.Len(t, got, 10)
	}
}

// unreadable cannot read the record of that kind whose ID ends so.
type unreadable struct {
	store.Store
	kind string
	bad  *string
}

func (u unreadable) Get(ctx ctxT, kind string, ids ...string) ([]store.Record, error) {
	if kind == u.kind && *u.bad != "" && slices.ContainsFunc(ids, func(id string) bool { return strings.HasSuffix(id, *u.bad) }) {
		return nil, errStore
	}
	return u.Store.Get(ctx, kind, ids...)
}

// apart requires that no grant was claimed twice, and returns the IDs.
func apart(t *testing.T, found [][]grant.Grant) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	for _, g := range slices.Concat(found...) {
		require.False(t, seen[g.ID], "no two get the same one")
		seen[g.ID] = true
	}
	return seen
}
