package grant_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// whole requires that what is in the store fits together: nothing is half-written, and the ledger tells all of it.
func (w *world) whole(what string) {
	w.t.Helper()
	type told = map[string]int
	entries, grants, boxes, events, tokens := map[string]told{}, map[string]string{}, map[string]int{}, map[string]int{}, map[string][]store.Record{}
	uses := map[string]int{}
	for _, r := range w.store.everything(w.t) {
		aggregate, id, _ := strings.Cut(r.ID, ".")
		var data struct {
			What, Grant, State string
			Uses               int
		}
		switch r.Kind {
		case "ledger":
			require.NoError(w.t, json.Unmarshal(r.Data, &data), what)
			if entries[data.Grant] == nil {
				entries[data.Grant] = told{}
			}
			entries[data.Grant][data.What]++
		case "grant":
			require.NoError(w.t, json.Unmarshal(r.Data, &data), what)
			grants[id], uses[id] = data.State, data.Uses
		case "push", "poll", "redirect":
			boxes[id]++
		case "event":
			events[aggregate]++
		case "token":
			tokens[aggregate] = append(tokens[aggregate], r)
		}
	}
	redeemed, used, granted := 0, 0, 0
	for id, state := range grants {
		made := told{"pending": 1}
		if entries[id]["pending"] == 0 {
			made = told{"issued": 1}
		}
		switch state {
		case "issued":
			made["issued"] = 1
		case "denied":
			made["denied"] = 1
		case "redeemed":
			made["issued"], made["redeemed"] = 1, 1
			redeemed++
			granted += uses[id]
			used += entries[id]["used"]
			require.Zero(w.t, boxes[id], what)
		}
		for _, word := range []string{"pending", "issued", "denied", "redeemed"} {
			require.Equal(w.t, made[word], entries[id][word], "%s: %s grant, %s in the ledger", what, state, word)
		}
		require.LessOrEqual(w.t, entries[id]["revoked"], 1, what)
		if state == "issued" && entries[id]["revoked"] == 0 && entries[""]["revoked"] == 0 {
			require.Equal(w.t, 1, boxes[id], "%s: the code of an issued grant waits", what)
		}
	}
	for id := range entries {
		if id != "" {
			require.Contains(w.t, grants, id, "%s: a ledger entry about nothing", what)
		}
	}
	n, left := 0, 0
	for _, all := range tokens {
		for _, r := range all {
			n++
			left += int(r.Left)
		}
	}
	require.Equal(w.t, redeemed, n, "%s: tokens of redeemed grants", what)
	require.Equal(w.t, granted-used, left, "%s: every use is in the ledger", what)
	require.Len(w.t, events, min(len(grants), 1), what)
}

// Each call of each operation fails once, before it happens or after; then the operation is done again.
func TestStoreFails(t *testing.T) {
	asked := func(c *grant.Config) { c.Triggers[0].Consent = grant.Once; c.Triggers[0].Deliver = grant.Push }
	pushed := func(c *grant.Config) { c.Triggers[0].Deliver = grant.Push; c.Triggers[0].PerMinute = 2 }
	for _, op := range []struct {
		name    string
		change  func(*grant.Config)
		prepare func(w *world) (do func() error)
		// again is what the second try says, where that differs from success: after a lost answer.
		again error
		// after is what must be true in the end.
		after func(t *testing.T, w *world)
	}{
		{"emit", pushed, func(w *world) func() error {
			return func() error {
				got, err := w.Emit(ctx, mention("m1"))
				if err == nil && (len(got) != 1 || got[0].Code.IsZero()) {
					err = errors.New("not one grant with a code")
				}
				return err
			}
		}, nil, func(t *testing.T, w *world) {
			require.Len(t, w.store.ofKind(t, "grant"), 1)
			window := w.store.ofKind(t, "window")
			require.Len(t, window, 1)
			require.EqualValues(t, 1, window[0].Left, "one of two")
		}},
		{"emit after revocations", nil, func(w *world) func() error {
			require.NoError(t, w.RevokeAccount(ctx, "zhang-san"))
			require.NoError(t, w.RevokeApp(ctx, "zhang-san", "bookbot", group))
			return func() error { _, err := w.Emit(ctx, mention("m1")); return err }
		}, nil, func(t *testing.T, w *world) {
			_, err := w.Use(ctx, w.token("m1"), write)
			require.NoError(t, err)
		}},
		{"emit for two", func(c *grant.Config) {
			other := onMention()
			other.ID = "other"
			c.Triggers = append(c.Triggers, other)
		}, func(w *world) func() error {
			return func() error { _, err := w.Emit(ctx, mention("m1")); return err }
		}, nil, func(t *testing.T, w *world) { require.Len(t, w.store.ofKind(t, "grant"), 2) }},
		{"ask", asked, func(w *world) func() error {
			return func() error { _, err := w.Emit(ctx, mention("m1")); return err }
		}, nil, func(t *testing.T, w *world) { require.Len(t, w.store.ofKind(t, "grant"), 1) }},
		{"decide", asked, func(w *world) func() error {
			g := w.emit(mention("m1"))
			return func() error { _, err := w.Decide(ctx, "zhang-san", g.ID, true); return err }
		}, grant.ErrInvalid, func(t *testing.T, w *world) {
			require.Equal(t, "issued", w.emit(mention("m1")).State)
			require.Equal(t, "issued", w.emit(mention("m2")).State)
		}},
		{"emit with an answer", asked, func(w *world) func() error {
			_, err := w.Decide(ctx, "zhang-san", w.emit(mention("m0")).ID, false)
			require.NoError(t, err)
			require.NoError(t, w.RevokeApp(ctx, "zhang-san", "bookbot", group))
			return func() error { _, err := w.Emit(ctx, mention("m1")); return err }
		}, nil, func(t *testing.T, w *world) { require.Equal(t, "pending", w.emit(mention("m1")).State) }},
		{"redeem", pushed, func(w *world) func() error {
			g := w.emit(mention("m1"))
			return func() error { _, _, err := w.Redeem(ctx, "bookbot", g.Code); return err }
		}, grant.ErrUsedUp, func(t *testing.T, w *world) { require.Len(t, w.store.ofKind(t, "token"), 1) }},
		{"use", nil, func(w *world) func() error {
			token := w.token("m1")
			return func() error { _, err := w.Use(ctx, token, write); return err }
		}, nil, func(t *testing.T, w *world) {
			left := w.store.ofKind(t, "token")[0].Left
			require.GreaterOrEqual(t, left, int64(1))
			require.LessOrEqual(t, left, int64(2))
		}},
		{"revoke", pushed, func(w *world) func() error {
			g := w.emit(mention("m1"))
			return func() error { return w.Revoke(ctx, "zhang-san", g.ID) }
		}, nil, func(t *testing.T, w *world) {
			require.Equal(t, "revoked", w.emit(mention("m1")).State)
			require.Empty(t, w.store.ofKind(t, "push"))
		}},
		{"revoke the app", pushed, func(w *world) func() error {
			w.emit(mention("m1"))
			return func() error { return w.RevokeApp(ctx, "zhang-san", "bookbot", group) }
		}, nil, func(t *testing.T, w *world) { require.Equal(t, "revoked", w.emit(mention("m1")).State) }},
		{"revoke the token", nil, func(w *world) func() error {
			token := grant.NewSecret(w.token("m1"))
			return func() error { return w.RevokeToken(ctx, "bookbot", token) }
		}, nil, func(t *testing.T, w *world) { require.Equal(t, "revoked", w.emit(mention("m1")).State) }},
		{"claim", pushed, func(w *world) func() error {
			w.emit(mention("m1"))
			return func() error {
				w.clock.advance(10 * time.Second) // a lost claim is a lease
				got, err := w.Claim(ctx, grant.Push, "", nil, 10, 10*time.Second)
				if err == nil && len(got) != 1 {
					err = errors.New("nothing claimed")
				}
				return err
			}
		}, nil, func(t *testing.T, w *world) {}},
		{"claim what was revoked", pushed, func(w *world) func() error {
			w.emit(mention("m1"))
			require.NoError(t, w.RevokeAccount(ctx, "zhang-san"))
			return func() error {
				w.clock.advance(10 * time.Second)
				got, err := w.Claim(ctx, grant.Push, "", nil, 10, 10*time.Second)
				if len(got) > 0 {
					err = errors.New("claimed")
				}
				return err
			}
		}, nil, func(t *testing.T, w *world) { require.Empty(t, w.store.ofKind(t, "push")) }},
		{"flush", nil, func(w *world) func() error {
			token := w.token("m1")
			w.setPermit(allow())
			for range 5 {
				_, err := w.Use(ctx, token, write)
				require.ErrorIs(t, err, grant.ErrDenied)
			}
			return func() error { return w.Flush(ctx) }
		}, nil, func(t *testing.T, w *world) {
			require.Equal(t, 5, w.whats("zhang-san")["refused"], "also with a lost answer")
		}},
		{"purge", nil, func(w *world) func() error {
			w.token("m1")
			w.clock.advance(365 * 24 * time.Hour)
			return func() error { _, err := w.Purge(ctx, 1000); return err }
		}, nil, func(t *testing.T, w *world) { require.Empty(t, w.store.everything(t)) }},
		{"grants", nil, func(w *world) func() error {
			w.emit(mention("m1"))
			return func() error { _, err := w.Grants(ctx, "zhang-san", "", true); return err }
		}, nil, func(t *testing.T, w *world) {}},
		{"ledger", nil, func(w *world) func() error {
			w.emit(mention("m1"))
			return func() error { _, err := w.Ledger(ctx, "zhang-san", "", 0); return err }
		}, nil, func(t *testing.T, w *world) {}},
		{"inspect", nil, func(w *world) func() error {
			token := grant.NewSecret(w.token("m1"))
			return func() error { _, err := w.Inspect(ctx, token); return err }
		}, nil, func(t *testing.T, w *world) {}},
		{"emit again", nil, func(w *world) func() error {
			w.emit(mention("m1"))
			return func() error { _, err := w.Emit(ctx, mention("m1")); return err }
		}, nil, func(t *testing.T, w *world) { require.Len(t, w.store.ofKind(t, "grant"), 1) }},
		{"chain", func(c *grant.Config) { c.Triggers[0].Chain = true }, func(w *world) func() error {
			ev := mention("m1")
			ev.By = w.emit(mention("m0")).ID
			return func() error { _, err := w.Emit(ctx, ev); return err }
		}, nil, func(t *testing.T, w *world) { require.Len(t, w.store.ofKind(t, "grant"), 2) }},
	} {
		t.Run(op.name, func(t *testing.T) {
			calls := 0
			for n := 1; ; n++ {
				reached := false
				for _, lost := range []bool{false, true} {
					what := fmt.Sprintf("%s: call %d, answer lost %v", op.name, n, lost)
					w := newWorld(t, op.change)
					do := op.prepare(w)
					w.store.reset()
					fail := func(i int, _ string) error {
						if i == n {
							return errStore
						}
						return nil
					}
					if lost {
						w.store.after = fail
					} else {
						w.store.before = fail
					}
					err := do()
					if w.store.total() < n {
						require.NoError(t, err, what)
						continue
					}
					reached = true
					require.ErrorIs(t, err, errStore, what)
					require.Empty(t, grant.Reason(err), what)
					if op.name != "purge" {
						w.whole(what)
					}
					w.store.reset()
					if err := do(); err != nil {
						require.True(t, lost && op.again != nil, "%s: the second try: %v", what, err)
						require.ErrorIs(t, err, op.again, what)
					}
					if op.name != "purge" {
						w.whole(what)
					}
					op.after(t, w)
				}
				if !reached {
					break
				}
				calls++
			}
			require.Positive(t, calls)
		})
	}
}

// A hanging store answers when the caller gives up.
type hanging struct{ store.Store }

func (hanging) Get(ctx context.Context, _ string, _ ...string) ([]store.Record, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hanging) Apply(ctx context.Context, _ time.Time, _ []store.Op) (store.Outcome, error) {
	<-ctx.Done()
	return store.Outcome{}, ctx.Err()
}

func TestStoreHangs(t *testing.T) {
	w := newWorld(t, nil)
	g, token := w.emit(mention("m1")), w.token("m2")
	synctest.Test(t, func(t *testing.T) {
		e := w.In(hanging{w.store})
		for name, do := range map[string]func(context.Context) error{
			"emit":   func(ctx context.Context) error { _, err := e.Emit(ctx, mention("m3")); return err },
			"redeem": func(ctx context.Context) error { _, _, err := e.Redeem(ctx, "bookbot", g.Code); return err },
			"use":    func(ctx context.Context) error { _, err := e.Use(ctx, token, write); return err },
			"revoke": func(ctx context.Context) error { return e.RevokeAccount(ctx, "zhang-san") },
		} {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			require.ErrorIs(t, do(ctx), context.DeadlineExceeded, name)
			cancel()
		}
	})
	d, err := w.Use(ctx, token, write)
	require.NoError(t, err)
	require.Equal(t, 2, d.Left)
	w.redeem(g)
}

func TestPermit(t *testing.T) {
	both := func(c *grant.Config) { c.Triggers[0].Allow = []string{"message.write", "member.read"} }
	errAway := errors.New("the directory is away")

	t.Run("what it is asked", func(t *testing.T) {
		w := newWorld(t, both)
		var asked []grant.Access
		w.setPermit(func(_ context.Context, a grant.Access) error {
			asked = append(asked, a)
			require.Zero(t, w.store.count("apply"), "before anything is written")
			return nil
		})
		g := w.emit(mention("m1"))
		require.Equal(t, []string{"group:42/member.read", "group:42/message.write"}, scopes(asked))
		require.Equal(t, grant.Access{Account: "zhang-san", App: "bookbot", Scope: asked[0].Scope}, asked[0])
		w.store.reset()
		asked = nil
		token := w.redeem(g)
		require.Empty(t, asked)
		w.store.reset()
		_, err := w.Use(ctx, token, write)
		require.NoError(t, err)
		require.Equal(t, []grant.Access{{Account: "zhang-san", App: "bookbot", Scope: write, Grant: g.ID}}, asked)
	})
	t.Run("before the first statement of all", func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) {
			another, third := onMention(), onMention()
			another.ID, another.Chain, third.ID, third.Consent = "another", true, "third", grant.Once
			c.Triggers[0].Chain = true
			c.Triggers = append(c.Triggers, another, third)
		})
		asked := 0
		w.setPermit(func(context.Context, grant.Access) error {
			asked++
			require.Zero(t, w.store.total(), "something may be locked by now")
			return nil
		})
		got, err := w.Emit(ctx, mention("m1"))
		require.NoError(t, err)
		require.Len(t, got, 3)
		require.Equal(t, 3, asked)
		w.store.reset()
		again := mention("m2")
		again.By = got[0].ID
		got, err = w.Emit(ctx, again)
		require.NoError(t, err)
		require.Len(t, got, 2)
		w.store.reset()
		w.setPermit(allow())
		got, err = w.Emit(ctx, again)
		require.ErrorIs(t, err, grant.ErrDenied)
		require.Empty(t, got)
		require.Zero(t, w.store.total(), "a no needs no store")
	})
	t.Run("it does not know", func(t *testing.T) {
		w := newWorld(t, both)
		// At issue one of two is enough: half a grant would be for good.
		w.setPermit(func(_ context.Context, a grant.Access) error {
			if a.Scope.Action() == "member.read" {
				return errAway
			}
			return nil
		})
		got, err := w.Emit(ctx, mention("m1"))
		require.ErrorIs(t, err, errAway)
		require.Empty(t, got)
		require.Empty(t, w.store.everything(t))
		w.setPermit(nil)
		token := w.token("m1")
		w.setPermit(func(context.Context, grant.Access) error { return errAway })
		w.store.reset()
		_, err = w.Use(ctx, token, write)
		require.ErrorIs(t, err, errAway)
		require.Empty(t, grant.Reason(err))
		_, err = w.Inspect(ctx, grant.NewSecret(token))
		require.ErrorIs(t, err, errAway)
		require.Zero(t, w.store.count("apply"))
		w.setPermit(nil)
		d, err := w.Use(ctx, token, write)
		require.NoError(t, err)
		require.Equal(t, 2, d.Left, "nothing was spent")
		require.Zero(t, w.whats("zhang-san")["refused"])
	})
	t.Run("it says no", func(t *testing.T) {
		w := newWorld(t, both)
		token := w.token("m1")
		for _, no := range []error{grant.ErrDenied, fmt.Errorf("muted: %w", grant.ErrDenied), errors.Join(errAway, grant.ErrDenied)} {
			w.setPermit(func(context.Context, grant.Access) error { return no })
			w.store.reset()
			_, err := w.Use(ctx, token, write)
			require.ErrorIs(t, err, no)
			require.Equal(t, "rights_changed", grant.Reason(err))
			_, err = w.Inspect(ctx, grant.NewSecret(token))
			require.ErrorIs(t, err, grant.ErrDenied)
			_, err = w.Emit(ctx, mention("m2"))
			require.ErrorIs(t, err, grant.ErrDenied)
			require.Zero(t, w.store.count("apply"))
		}
	})
	t.Run("it is slow and the caller gives up", func(t *testing.T) {
		w := newWorld(t, nil)
		token := w.token("m1")
		for _, heeds := range []bool{true, false} {
			cancelled, cancel := context.WithCancel(ctx)
			w.setPermit(func(ctx context.Context, _ grant.Access) error {
				cancel()
				<-ctx.Done()
				if heeds {
					return ctx.Err()
				}
				return nil
			})
			_, err := w.Use(cancelled, token, write)
			require.ErrorIs(t, err, context.Canceled)
			require.Empty(t, grant.Reason(err))
			got, err := w.Emit(cancelled, mention("m2"))
			require.ErrorIs(t, err, context.Canceled)
			require.Empty(t, got)
		}
		w.setPermit(nil)
		d, err := w.Use(ctx, token, write)
		require.NoError(t, err)
		require.Equal(t, 2, d.Left)
		require.Len(t, w.store.ofKind(t, "grant"), 1)
	})
}

func scopes(asked []grant.Access) (out []string) {
	for _, a := range asked {
		out = append(out, a.Scope.String())
	}
	return out
}

func TestPurge(t *testing.T) {
	const day = 24 * time.Hour
	w := newWorld(t, func(c *grant.Config) {
		c.KeepLedger = 30 * day
		c.Triggers[0].PerMinute = 5
		asked := onMention()
		asked.ID, asked.App, asked.Consent = "asked", "weather", grant.Once
		c.Triggers = append(c.Triggers, asked)
	})
	w.emit(mention("expires"))
	used := w.emit(mention("used"))
	token := w.redeem(used) // ends after 10 min
	revoked := w.emit(mention("revoked"))
	require.NoError(t, w.Revoke(ctx, "zhang-san", revoked.ID))
	ev := mention("asked")
	ev.App = "weather"
	pending := w.emit(ev)
	_, err := w.Decide(ctx, "zhang-san", pending.ID, false)
	require.NoError(t, err)
	require.NoError(t, w.RevokeAccount(ctx, "li-si"))
	require.NoError(t, w.RevokeApp(ctx, "li-si", "bookbot", group))

	// there is what of each kind is left.
	there := func() map[string]int {
		out := map[string]int{}
		for _, r := range w.store.everything(t) {
			out[r.Kind]++
		}
		return out
	}
	all := map[string]int{"event": 4, "grant": 4, "token": 1, "revocation": 3, "consent": 1, "window": 1, "poll": 1, "ledger": 9}
	require.Equal(t, all, there())
	at := func(d time.Duration, gone ...any) {
		t.Helper()
		w.clock.set(start.Add(d))
		_, err := w.Purge(ctx, 1000)
		require.NoError(t, err)
		for i := 0; i < len(gone); i += 2 {
			if all[gone[i].(string)] -= gone[i+1].(int); all[gone[i].(string)] == 0 {
				delete(all, gone[i].(string))
			}
		}
		require.Equal(t, all, there(), "after %v", d)
	}
	at(time.Minute-time.Microsecond, "window", 1) // which ends with the clock's minute
	at(time.Minute)
	at(time.Minute+time.Microsecond, "poll", 1)
	at(day+10*time.Minute, "token", 0)
	_, err = w.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrExpired)
	at(day+10*time.Minute+time.Microsecond, "token", 1)
	_, err = w.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrExpired, "and no different afterwards")
	_, err = w.Inspect(ctx, grant.NewSecret(token))
	require.ErrorIs(t, err, grant.ErrExpired)
	list, err := w.Grants(ctx, "zhang-san", "", true)
	require.NoError(t, err)
	require.Len(t, list, 4)

	// P2 for events that are as late as they may be: an event of the start may come an hour later, and then again.
	at(7 * day)
	at(7*day+time.Minute+time.Microsecond, "grant", 2)    // those whose codes ended after a minute
	at(7*day+10*time.Minute+time.Microsecond, "grant", 1) // the token's
	at(7*day+time.Hour+time.Microsecond, "event", 4)      // the causes outlive them
	at(8*day+time.Microsecond, "grant", 1)                // the one that might have been decided for a day
	at(21 * day)
	at(21*day+time.Microsecond, "revocation", 1) // of one grant; those of the account and the app stay
	at(30*day+time.Microsecond, "ledger", 9)
	at(90*day+time.Microsecond, "consent", 1)
	at(1000 * day)
	require.Equal(t, map[string]int{"revocation": 2}, there())
}

// However late an event is emitted, with all that Purge has done in between: one grant, as long as its time says when
// it happened.
func TestLateEventsAfterPurge(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].RedeemWithin = time.Second })
	ev := mention("m1")
	ev.At = start
	made := 0
	for step := time.Duration(0); step < 9*24*time.Hour; step += 19*time.Minute + 13*time.Second {
		w.clock.set(start.Add(step))
		_, err := w.Purge(ctx, 1000)
		require.NoError(t, err)
		w.store.reset()
		got, err := w.Emit(ctx, ev)
		if err != nil {
			require.ErrorIs(t, err, grant.ErrInvalid)
			require.Greater(t, step, time.Hour)
			continue
		}
		require.Len(t, got, 1)
		for _, batch := range w.store.batches() {
			made += len(batch) / 6 // an issue has six operations
		}
	}
	require.Equal(t, 1, made)
	require.Equal(t, 1, w.whats("zhang-san")["issued"])
}

// A step is as small as it is asked to be, and the steps reach everything, whatever else comes to its end meanwhile.
func TestPurgeInSteps(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 1201 {
		w.emit(mention(fmt.Sprint(i)))
	}
	w.clock.advance(365 * 24 * time.Hour)
	cancelled, cancel := context.WithCancel(ctx)
	w.store.reset()
	w.store.after = func(n int, _ string) error {
		if n == 3 {
			cancel()
		}
		return nil
	}
	n, err := w.Purge(cancelled, 500)
	require.NoError(t, err, "enough was removed")
	require.Equal(t, 500, n)
	_, err = w.Purge(cancelled, 500)
	require.ErrorIs(t, err, context.Canceled)
	w.store.reset()
	total := n
	for n == 500 {
		before := len(w.store.everything(t))
		n, err = w.Purge(ctx, 500)
		require.NoError(t, err)
		require.Equal(t, before-n, len(w.store.everything(t)))
		total += n
	}
	require.Equal(t, 4*1201, total, "event, grant, outbox and ledger of each")
	require.Empty(t, w.store.everything(t))
	for _, n := range []int{-1, 0, 1001} {
		_, err := w.Purge(ctx, n)
		require.ErrorIs(t, err, grant.ErrInvalid)
	}
}

// A kind that cannot be purged, such as for a damaged record, keeps no other from its turn.
func TestPurgePastAFault(t *testing.T) {
	w := newWorld(t, nil)
	w.token("m1")
	w.clock.advance(365 * 24 * time.Hour)
	w.store.reset()
	damaged := errors.New("damaged")
	w.store.before = func(n int, _ string) error {
		if n == 1 { // of tokens
			return damaged
		}
		return nil
	}
	n, err := w.Purge(ctx, 1000)
	require.ErrorIs(t, err, damaged)
	require.ErrorContains(t, err, "purging token")
	require.NotZero(t, n)
	left := w.store.everything(t)
	require.Len(t, left, 1)
	require.Equal(t, "token", left[0].Kind)
}

func TestGrants(t *testing.T) {
	w := newWorld(t, asks(grant.Implied))
	var want []string
	for i := range 1100 { // more than a page
		w.clock.advance(time.Microsecond)
		ev := mention(fmt.Sprint(i))
		if i%2 == 1 {
			ev.App = "weather"
		}
		want = append([]string{w.emit(ev).ID}, want...)
	}
	li := mention("li")
	li.Account = "li-si"
	w.emit(li)
	list, err := w.Grants(ctx, "zhang-san", "", false)
	require.NoError(t, err)
	var got []string
	for _, g := range list {
		require.True(t, g.Code.IsZero())
		require.Equal(t, "issued", g.State)
		got = append(got, g.ID)
	}
	require.Equal(t, want, got, "the newest first")
	list, err = w.Grants(ctx, "zhang-san", "weather", false)
	require.NoError(t, err)
	require.Len(t, list, 550)
	w.clock.advance(time.Minute)
	list, err = w.Grants(ctx, "zhang-san", "", false)
	require.NoError(t, err)
	require.Empty(t, list)
	list, err = w.Grants(ctx, "zhang-san", "", true)
	require.NoError(t, err)
	require.Len(t, list, 1100)
	require.Equal(t, "expired", list[0].State)
}

func TestLedgerPages(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 250 {
		w.clock.advance(time.Microsecond)
		w.emit(mention(fmt.Sprint(i)))
	}
	seen := map[string]bool{}
	before, last := "", w.clock.now()
	for _, n := range []int{100, 100, 50, 0} {
		page, err := w.Ledger(ctx, "zhang-san", before, 0)
		require.NoError(t, err)
		require.Len(t, page, n)
		for _, e := range page {
			require.False(t, seen[e.ID])
			require.False(t, e.At.After(last), "the newest first")
			seen[e.ID], before, last = true, e.ID, e.At
		}
	}
}

// What a holder of one real token can do to memory and to the user's ledger by being refused is bounded.
func TestRefusalsAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	refuse := func(in string) {
		child, err := group.Parent().Child("group", in)
		require.NoError(t, err)
		s, err := scopeOf(child.String())
		require.NoError(t, err)
		_, err = w.Use(ctx, token, s)
		require.Error(t, err)
	}
	for i := range 500 {
		refuse(fmt.Sprint("other", i))
	}
	var scoped, bare int
	for _, e := range w.ledger("zhang-san") {
		if e.What != "refused" {
			continue
		}
		if e.Scope == "" {
			bare += e.Count
		} else {
			scoped += e.Count
		}
	}
	require.Equal(t, 8, scoped)
	require.Equal(t, 492, bare)
	require.Len(t, w.store.ofKind(t, "ledger"), 2+8+1)

	// With the store away, and many different ones.
	tokens := make([]string, 1500)
	for i := range tokens {
		ev := mention(fmt.Sprint("t", i))
		ev.Account = fmt.Sprint("user", i%100)
		tokens[i] = w.redeem(w.emit(ev))
	}
	w.store.before = func(int, string) error { return errStore }
	total := 0
	for round := range 2 {
		for _, held := range tokens {
			for j := range 8 {
				s, err := scopeOf(fmt.Sprintf("group:%d/thread:%d", round, j))
				require.NoError(t, err)
				_, err = w.Use(ctx, held, s)
				require.Error(t, err)
				total++
			}
		}
		err := w.Flush(ctx)
		require.ErrorIs(t, err, errStore)
		require.ErrorContains(t, err, "too many to keep")
	}
	w.store.reset()
	require.NoError(t, w.Flush(ctx))
	require.Equal(t, 10_000, w.store.count("apply"), "no more than that is kept")
	require.Greater(t, total, 10_000)
}

// The callers' own conditions are asked for real credentials only, and before anything is written.
func TestFuncs(t *testing.T) {
	w := newWorld(t, nil)
	errOwn := errors.New("not on Sundays")
	g := w.emit(mention("m1"))
	asked := 0
	no := func(got *grant.Grant) error {
		asked++
		require.Equal(t, g.ID, got.ID)
		require.True(t, got.Code.IsZero())
		return errOwn
	}
	w.store.reset()
	_, _, err := w.RedeemFunc(ctx, "bookbot", grant.NewSecret(g.Code.Reveal()+"x"), no)
	require.ErrorIs(t, err, grant.ErrUnknown)
	_, _, err = w.RedeemFunc(ctx, "weather", g.Code, no)
	require.ErrorIs(t, err, grant.ErrUnknown)
	require.Zero(t, asked)
	_, token, err := w.RedeemFunc(ctx, "bookbot", g.Code, no)
	require.Equal(t, errOwn, err)
	require.True(t, token.IsZero())
	require.Equal(t, 1, asked)
	require.Zero(t, w.store.count("apply"))
	held := w.redeem(g)
	_, _, err = w.RedeemFunc(ctx, "bookbot", g.Code, no)
	require.ErrorIs(t, err, grant.ErrUsedUp)
	require.Equal(t, 1, asked)

	w.store.reset()
	resolve := func(s scope.Scope, err error) func() (scope.Scope, error) {
		return func() (scope.Scope, error) { asked++; return s, err }
	}
	asked = 0
	_, err = w.UseFunc(ctx, held+"x", resolve(write, nil))
	require.ErrorIs(t, err, grant.ErrUnknown)
	require.Zero(t, asked)
	_, err = w.UseFunc(ctx, held, resolve(scope.Scope{}, errOwn))
	require.Equal(t, errOwn, err)
	require.Zero(t, w.store.total())
	_, err = w.UseFunc(ctx, held, resolve(scope.Scope{}, nil))
	require.ErrorIs(t, err, scope.ErrWrongDomain)
	d, err := w.UseFunc(ctx, held, func() (scope.Scope, error) {
		inner, err := w.Use(ctx, held, write) // a use within a use has memory of its own
		require.NoError(t, err)
		require.Equal(t, 2, inner.Left)
		return scope.MustParse("group:42/thread:7/message.write"), nil
	})
	require.NoError(t, err)
	require.Equal(t, 1, d.Left)
	require.Equal(t, "group:42/thread:7/message.write", d.Scope.String())
	require.Equal(t, "zhang-san", d.Account)

	// One that panics leaves the engine as it was.
	require.Panics(t, func() { _, _ = w.UseFunc(ctx, held, func() (scope.Scope, error) { panic("theirs") }) })
	w.setPermit(func(ctxT, grant.Access) error { panic("theirs") })
	require.Panics(t, func() { _, _ = w.Use(ctx, held, write) })
	w.setPermit(nil)
	_, err = w.Use(ctx, held, write)
	require.NoError(t, err)
}

// Uses of different tokens at once do not see each other's memory.
func TestUsesDoNotMix(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = grant.Unlimited })
	tokens := make([]string, 16)
	for i := range tokens {
		ev := mention(strings.Repeat("e", i*16+1))
		ev.Account, ev.Domain = fmt.Sprint("user-", i), scope.MustDomain(fmt.Sprintf("group:%d", i))
		tokens[i] = w.redeem(w.emit(ev))
	}
	errs := together(64, func(n int) error {
		for k := range 100 {
			i := (n + k) % len(tokens)
			want, err := scopeOf(fmt.Sprintf("group:%d/thread:%d", i, k))
			if err != nil {
				return err
			}
			d, err := w.Use(ctx, tokens[i], want)
			if err != nil {
				return err
			}
			if d.Account != fmt.Sprint("user-", i) || d.Scope != want || len(d.Event) != i*16+1 || d.GrantedIn().String() != fmt.Sprint("group:", i) {
				return fmt.Errorf("use %d: %+v", i, d)
			}
		}
		return nil
	})
	require.Equal(t, 64, winners(t, errs))
	for i := range tokens {
		entries := w.ledger(fmt.Sprint("user-", i))
		require.Len(t, entries, 402)
		for _, e := range entries {
			require.True(t, strings.HasPrefix(e.Scope, fmt.Sprintf("group:%d/", i)), e.Scope)
		}
	}
}
