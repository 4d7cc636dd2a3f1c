package grant_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

func asks(consent grant.Consent) func(*grant.Config) {
	return func(c *grant.Config) {
		c.Triggers[0].Consent = consent
		other := onMention()
		other.ID, other.App, other.Consent = "other", "weather", consent
		c.Triggers = append(c.Triggers, other)
	}
}

// The decision is when the grant is issued: what the account itself may no longer do is not granted then either (P4).
func TestDecideAsksPermit(t *testing.T) {
	for _, consent := range []grant.Consent{grant.Once, grant.Always} {
		w := newWorld(t, func(c *grant.Config) {
			asks(consent)(c)
			c.Triggers[0].Allow = []string{"member.read", "message.write"}
		})
		g := w.emit(mention("m1"))
		require.Equal(t, []string{"member.read", "message.write"}, g.Actions)

		w.setPermit(func(ctxT, grant.Access) error { return grant.ErrDenied })
		_, err := w.Decide(ctx, "zhang-san", g.ID, true)
		require.ErrorIs(t, err, grant.ErrDenied)
		w.setPermit(func(ctxT, grant.Access) error { return context.DeadlineExceeded })
		_, err = w.Decide(ctx, "zhang-san", g.ID, true)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Empty(t, w.store.ofKind(t, "poll"))
		require.Empty(t, w.store.ofKind(t, "consent"))
		require.NoError(t, w.Flush(ctx))
		entries, err := w.Ledger(ctx, "zhang-san", "", 0)
		require.NoError(t, err)
		require.Equal(t, "refused denied "+g.ID, entries[0].What+" "+entries[0].Reason+" "+entries[0].Grant)

		w.setPermit(func(_ ctxT, a grant.Access) error {
			if a.Scope.Action() == "member.read" {
				return grant.ErrDenied
			}
			return nil
		})
		decided, err := w.Decide(ctx, "zhang-san", g.ID, true)
		require.NoError(t, err)
		require.Equal(t, []string{"message.write"}, decided.Actions)
		redeemed, _, err := w.Redeem(ctx, "bookbot", decided.Code)
		require.NoError(t, err)
		require.Equal(t, []string{"message.write"}, redeemed.Actions)
		w.setPermit(func(ctxT, grant.Access) error { return nil })
		again := w.emit(mention("m2"))
		require.Equal(t, consent == grant.Once, again.State == "issued", "what is remembered is the answer to the question")
	}
}

func TestConsent(t *testing.T) {
	t.Run("implied", func(t *testing.T) {
		w := newWorld(t, asks(grant.Implied))
		g := w.emit(mention("m1"))
		require.Equal(t, "issued", g.State)
		_, err := w.Decide(ctx, "zhang-san", g.ID, true)
		require.ErrorIs(t, err, grant.ErrInvalid)
	})
	t.Run("always", func(t *testing.T) {
		w := newWorld(t, asks(grant.Always))
		for i := range 3 {
			g := w.emit(mention(fmt.Sprint(i)))
			require.Equal(t, "pending", g.State)
			_, err := w.Decide(ctx, "zhang-san", g.ID, true)
			require.NoError(t, err)
		}
		require.Empty(t, w.store.ofKind(t, "consent"))
	})
	t.Run("a pending grant has no code, and its clocks start at the decision", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		g := w.emit(mention("m1"))
		require.Equal(t, "pending", g.State)
		require.True(t, g.Code.IsZero())
		require.True(t, g.RedeemBy.IsZero())
		require.Empty(t, w.store.ofKind(t, "poll"))
		require.Equal(t, exported(g), exported(w.emit(mention("m1"))), "also when emitted again")
		list, err := w.Grants(ctx, "zhang-san", "bookbot", false)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, "pending", list[0].State)

		w.clock.advance(time.Hour)
		decided, err := w.another().Decide(ctx, "zhang-san", g.ID, true)
		require.NoError(t, err)
		require.Equal(t, "issued", decided.State)
		require.Equal(t, start.Add(time.Hour+time.Minute), decided.RedeemBy)
		w.clock.advance(time.Minute - 1000)
		require.Equal(t, decided.Code.Reveal(), w.emit(mention("m1")).Code.Reveal())
		redeemed, _, err := w.Redeem(ctx, "bookbot", decided.Code)
		require.NoError(t, err)
		require.Equal(t, w.clock.now().Add(10*time.Minute).UTC(), redeemed.NotAfter)
	})
	t.Run("once", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		g := w.emit(mention("m1"))
		_, err := w.Decide(ctx, "zhang-san", g.ID, true)
		require.NoError(t, err)
		node := w.another()
		remembered := func(change func(*grant.Event)) string {
			w.clock.advance(time.Microsecond)
			ev := mention(w.clock.now().String())
			change(&ev)
			got, err := node.Emit(ctx, ev)
			require.NoError(t, err)
			return got[0].State
		}
		require.Equal(t, "issued", remembered(func(*grant.Event) {}), "on another node as well")
		// It is of this account, app, domain and these actions.
		require.Equal(t, "pending", remembered(func(ev *grant.Event) { ev.Account = "li-si" }))
		require.Equal(t, "pending", remembered(func(ev *grant.Event) { ev.App = "weather" }))
		require.Equal(t, "pending", remembered(func(ev *grant.Event) { ev.Domain = scope.MustDomain("group:43") }))
		require.Equal(t, "pending", remembered(func(ev *grant.Event) { ev.Domain = scope.MustDomain("group:42/thread:7") }))
		w.config.Triggers[0].Allow = []string{"message.write", "message.read"}
		node = w.another()
		require.Equal(t, "pending", remembered(func(*grant.Event) {}), "more actions are another question")
		// For 90 days.
		node = w.Engine
		w.clock.set(start.Add(90*24*time.Hour - 2*time.Microsecond))
		require.Equal(t, "issued", remembered(func(*grant.Event) {}))
		require.Equal(t, "pending", remembered(func(*grant.Event) {}))
	})
	t.Run("no is remembered", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		g := w.emit(mention("m1"))
		denied, err := w.Decide(ctx, "zhang-san", g.ID, false)
		require.NoError(t, err)
		require.Equal(t, "denied", denied.State)
		require.True(t, denied.Code.IsZero())
		got, err := w.another().Emit(ctx, mention("m2"))
		require.ErrorIs(t, err, grant.ErrDenied)
		require.Empty(t, got)
		require.Empty(t, w.store.ofKind(t, "poll"))
		require.Equal(t, map[string]int{"pending": 1, "denied": 1, "refused": 1}, w.whats("zhang-san"))
		_, err = w.Decide(ctx, "zhang-san", g.ID, true)
		require.ErrorIs(t, err, grant.ErrInvalid, "a decision is one")
		list, err := w.Grants(ctx, "zhang-san", "", false)
		require.NoError(t, err)
		require.Empty(t, list)
	})
	t.Run("revoking forgets", func(t *testing.T) {
		for _, answer := range []bool{true, false} {
			for name, revoke := range map[string]func(*grant.Engine) error{
				"app":     func(e *grant.Engine) error { return e.RevokeApp(ctx, "zhang-san", "bookbot", group) },
				"account": func(e *grant.Engine) error { return e.RevokeAccount(ctx, "zhang-san") },
			} {
				w := newWorld(t, asks(grant.Once))
				g := w.emit(mention("m1"))
				waiting := w.emit(mention("m2"))
				_, err := w.Decide(ctx, "zhang-san", g.ID, answer)
				require.NoError(t, err)
				require.NoError(t, revoke(w.another()))
				for i, e := range w.nodes() {
					got, err := e.Emit(ctx, mention(fmt.Sprint("after", i)))
					require.NoError(t, err, "%s %v", name, answer)
					require.Equal(t, "pending", got[0].State, "%s %v", name, answer)
				}
				// What waited is gone with it.
				_, err = w.Decide(ctx, "zhang-san", waiting.ID, true)
				require.ErrorIs(t, err, grant.ErrRevoked)
				require.Equal(t, "revoked", w.emit(mention("m2")).State)
			}
		}
	})
	t.Run("revoking one that waits", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		g := w.emit(mention("m1"))
		require.NoError(t, w.Revoke(ctx, "zhang-san", g.ID))
		_, err := w.Decide(ctx, "zhang-san", g.ID, true)
		require.ErrorIs(t, err, grant.ErrRevoked)
		require.Empty(t, w.store.ofKind(t, "consent"))
	})
	t.Run("only the account decides", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		g := w.emit(mention("m1"))
		for _, who := range []string{"li-si", "", "bookbot", "zhang-san "} {
			_, err := w.Decide(ctx, who, g.ID, true)
			require.ErrorIs(t, err, grant.ErrUnknown, who)
		}
		require.Equal(t, "pending", w.emit(mention("m1")).State)
	})
	t.Run("too late", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		g, other := w.emit(mention("m1")), w.emit(mention("m2"))
		w.clock.advance(24*time.Hour - time.Microsecond)
		_, err := w.Decide(ctx, "zhang-san", other.ID, true)
		require.NoError(t, err)
		w.clock.advance(time.Microsecond)
		_, err = w.Decide(ctx, "zhang-san", g.ID, true)
		require.ErrorIs(t, err, grant.ErrExpired)
		list, err := w.Grants(ctx, "zhang-san", "", true)
		require.NoError(t, err)
		require.Len(t, list, 2)
	})
	t.Run("64 decide", func(t *testing.T) {
		for range 10 {
			w := newWorld(t, asks(grant.Once))
			nodes := w.nodes()
			g := w.emit(mention("m1"))
			errs := together(64, func(i int) error {
				decided, err := nodes[i%2].Decide(ctx, "zhang-san", g.ID, i%4 < 2)
				if err == nil && decided.Code.IsZero() == (i%4 < 2) {
					err = fmt.Errorf("%s with code %v", decided.State, !decided.Code.IsZero())
				}
				return err
			})
			require.Equal(t, 1, winners(t, errs, grant.ErrInvalid))
			what := w.whats("zhang-san")
			require.Equal(t, 1, what["issued"]+what["denied"])
			require.Len(t, w.store.ofKind(t, "poll"), what["issued"])
			require.Len(t, w.store.ofKind(t, "consent"), 1)
		}
	})
	t.Run("while answers change", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		yes, no := w.emit(mention("yes")), w.emit(mention("no"))
		_, err := w.Decide(ctx, "zhang-san", yes.ID, true)
		require.NoError(t, err)
		// Between the look at the answer and the write of the grant the account says no to another question of the app's.
		w.store.hook = func() {
			_, err := w.another().Decide(ctx, "zhang-san", no.ID, false)
			require.NoError(t, err)
		}
		_, err = w.Emit(ctx, mention("m1"))
		require.ErrorIs(t, err, grant.ErrDenied)
		require.Len(t, w.store.ofKind(t, "poll"), 1)
	})
}
