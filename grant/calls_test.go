package grant_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
)

// What each call costs a store: round trips are what a server pays for.
func TestStoreCalls(t *testing.T) {
	asked := func(consent grant.Consent) func(*grant.Config) {
		return func(c *grant.Config) { c.Triggers[0].Consent = consent }
	}
	type calls = map[string]int
	for _, tc := range []struct {
		name   string
		change func(*grant.Config)
		// prepare runs before the count begins, and do is counted.
		prepare func(w *world) (do func() error)
		want    calls
	}{
		{"an event that matches nothing", nil, func(w *world) func() error {
			ev := mention("m1")
			ev.App = "weather"
			return func() error { _, err := w.Emit(ctx, ev); return err }
		}, calls{}},
		{"an issue", nil, func(w *world) func() error {
			return func() error { w.emit(mention("m1")); return nil }
		}, calls{"apply": 1}},
		{"an issue with a bound", func(c *grant.Config) { c.Triggers[0].PerMinute = 3 }, func(w *world) func() error {
			w.emit(mention("m0"))
			return func() error { w.emit(mention("m1")); return nil }
		}, calls{"apply": 1}},
		{"an issue after a revocation that this node has heard of", nil, func(w *world) func() error {
			require.NoError(t, w.RevokeAccount(ctx, "zhang-san"))
			w.emit(mention("m0"))
			return func() error { w.emit(mention("m1")); return nil }
		}, calls{"apply": 1}},
		{"an issue after two that it has not", nil, func(w *world) func() error {
			require.NoError(t, w.RevokeAccount(ctx, "zhang-san"))
			require.NoError(t, w.RevokeApp(ctx, "zhang-san", "bookbot", group))
			return func() error { w.emit(mention("m1")); return nil }
		}, calls{"apply": 3}},
		{"the same event again", nil, func(w *world) func() error {
			w.emit(mention("m1"))
			return func() error { w.emit(mention("m1")); return nil }
		}, calls{"apply": 2, "get": 4}}, // the event; the grant, what could have revoked it, the code
		{"a pending grant", asked(grant.Always), func(w *world) func() error {
			return func() error { w.emit(mention("m1")); return nil }
		}, calls{"apply": 1}},
		{"a question that may be answered", asked(grant.Once), func(w *world) func() error {
			return func() error { w.emit(mention("m1")); return nil }
		}, calls{"apply": 1, "get": 1}},
		{"a decision", asked(grant.Once), func(w *world) func() error {
			id := w.emit(mention("m1")).ID
			return func() error { _, err := w.Decide(ctx, "zhang-san", id, true); return err }
		}, calls{"apply": 1, "get": 1}},
		{"a redemption", nil, func(w *world) func() error {
			g := w.emit(mention("m1"))
			return func() error { w.redeem(g); return nil }
		}, calls{"apply": 1, "get": 1}},
		{"a use", nil, func(w *world) func() error {
			token := w.token("m1")
			return func() error { _, err := w.Use(ctx, token, write); return err }
		}, calls{"apply": 1}},
		{"a use on a node that has never seen the grant", nil, func(w *world) func() error {
			token, other := w.token("m1"), w.another()
			return func() error { _, err := other.Use(ctx, token, write); return err }
		}, calls{"apply": 1}},
		{"a forged token", nil, func(w *world) func() error {
			return func() error {
				_, err := w.Use(ctx, "bhst_"+strings.Repeat("A", 400), write)
				require.ErrorIs(t, err, grant.ErrUnknown)
				return nil
			}
		}, calls{}},
		{"an inspection", nil, func(w *world) func() error {
			token := grant.NewSecret(w.token("m1"))
			return func() error { _, err := w.Inspect(ctx, token); return err }
		}, calls{"get": 2}},
		{"a revocation of one grant", nil, func(w *world) func() error {
			g := w.emit(mention("m1"))
			w.redeem(g)
			return func() error { return w.Revoke(ctx, "zhang-san", g.ID) }
		}, calls{"apply": 1}},
		{"on a node that has never seen it", nil, func(w *world) func() error {
			g, other := w.emit(mention("m1")), w.another()
			w.redeem(g)
			return func() error { return other.Revoke(ctx, "zhang-san", g.ID) }
		}, calls{"apply": 1}},
		{"again", nil, func(w *world) func() error {
			g := w.emit(mention("m1"))
			require.NoError(w.t, w.Revoke(ctx, "zhang-san", g.ID))
			return func() error { return w.Revoke(ctx, "zhang-san", g.ID) }
		}, calls{"apply": 1}},
		{"of one that is not there", nil, func(w *world) func() error {
			id := w.emit(mention("m1")).ID
			return func() error {
				require.ErrorIs(w.t, w.Revoke(ctx, "li-si", id), grant.ErrUnknown)
				return nil
			}
		}, calls{"apply": 1}},
		{"of what is no grant's ID", nil, func(w *world) func() error {
			return func() error {
				require.ErrorIs(w.t, w.Revoke(ctx, "zhang-san", "x"), grant.ErrUnknown)
				return nil
			}
		}, calls{}},
		{"by its token", nil, func(w *world) func() error {
			token, other := grant.NewSecret(w.token("m1")), w.another()
			return func() error { return other.RevokeToken(ctx, "bookbot", token) }
		}, calls{"apply": 1}},
		{"by its code", nil, func(w *world) func() error {
			g, other := w.emit(mention("m1")), w.another()
			return func() error { return other.RevokeToken(ctx, "bookbot", g.Code) }
		}, calls{"apply": 1}},
		{"by another app", nil, func(w *world) func() error {
			g, token := w.emit(mention("m1")), grant.NewSecret(w.token("m2"))
			return func() error {
				require.ErrorIs(w.t, w.RevokeToken(ctx, "weather", g.Code), grant.ErrUnknown)
				require.ErrorIs(w.t, w.RevokeToken(ctx, "weather", token), grant.ErrUnknown)
				return nil
			}
		}, calls{}},
		{"a revocation of one app here", nil, func(w *world) func() error {
			for i := range 50 {
				w.token(strings.Repeat("m", i+1))
			}
			return func() error { return w.RevokeApp(ctx, "zhang-san", "bookbot", group) }
		}, calls{"apply": 1}},
		{"a revocation of all of an account's grants", nil, func(w *world) func() error {
			for i := range 50 {
				w.token(strings.Repeat("m", i+1))
			}
			return func() error { return w.RevokeAccount(ctx, "zhang-san") }
		}, calls{"apply": 1}},
		{"a claim of nothing", nil, func(w *world) func() error {
			return func() error { _, err := w.Claim(ctx, grant.Poll, "", nil, 10, time.Second); return err }
		}, calls{"claim": 1}},
		{"a claim of one", nil, func(w *world) func() error {
			w.emit(mention("m1"))
			return func() error { _, err := w.Claim(ctx, grant.Poll, "", nil, 10, time.Second); return err }
		}, calls{"claim": 1, "get": 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.change)
			do := tc.prepare(w)
			w.store.reset()
			require.NoError(t, do())
			w.store.mu.Lock()
			defer w.store.mu.Unlock()
			require.Equal(t, tc.want, w.store.calls)
		})
	}
}
