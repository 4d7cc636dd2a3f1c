package grant_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
)

const thumbprint = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" // of RFC 9449 §6.1

// bind redeems into a token that is bound to the key.
func (w *world) bind(g grant.Grant, key string) string {
	w.t.Helper()
	_, token, err := w.RedeemFunc(ctx, g.App, g.Code, func(g *grant.Grant) error { g.Key = key; return nil })
	require.NoError(w.t, err)
	return token.Reveal()
}

// holds is a prove of who has the key of that thumbprint, with proofs of that ID.
func (w *world) holds(key, id string) func(string) (string, time.Time, error) {
	return func(bound string) (string, time.Time, error) {
		if bound != key {
			return "", time.Time{}, errOtherKey
		}
		return id, w.clock.now().Add(time.Minute), nil
	}
}

var errOtherKey = errors.New("another key")

func writes() (scope.Scope, error) { return write, nil }

// Without its key a bound token is nothing, whatever it is presented to: what is stolen from a log, or from a webhook's
// body, acts for nobody.
func TestBoundToken(t *testing.T) {
	w := newWorld(t, nil)
	g := w.emit(mention("m1"))
	for _, key := range []string{strings.Repeat("a", 129), "a b", "a=", "\xff"} {
		_, _, err := w.RedeemFunc(ctx, g.App, g.Code, func(g *grant.Grant) error { g.Key = key; return nil })
		require.ErrorIs(t, err, grant.ErrInvalid, key)
	}
	token := w.bind(g, thumbprint)
	w.store.reset()
	unasked := func() (scope.Scope, error) { t.Error("it was asked what a thief wants"); return write, nil }
	for name, use := range map[string]func() (*grant.Delegation, error){
		"Use":         func() (*grant.Delegation, error) { return w.Use(ctx, token, write) },
		"UseFunc":     func() (*grant.Delegation, error) { return w.UseFunc(ctx, token, unasked) },
		"Prepare":     func() (*grant.Delegation, error) { return w.Prepare(ctx, token, write) },
		"PrepareFunc": func() (*grant.Delegation, error) { return w.PrepareFunc(ctx, token, unasked) },
	} {
		d, err := use()
		require.ErrorIs(t, err, grant.ErrUnknown, name)
		require.Empty(t, grant.Reason(err), name)
		require.Nil(t, d, name)
	}
	_, err := w.UseBound(ctx, token, w.holds("another", "1"), unasked)
	require.Equal(t, errOtherKey, err)
	_, err = w.PrepareBound(ctx, token, w.holds("another", "1"), unasked)
	require.Equal(t, errOtherKey, err)
	_, err = w.UseBound(ctx, "bhst_forged", func(string) (string, time.Time, error) { t.Error("asked about a forgery"); return "", time.Time{}, nil }, unasked)
	require.ErrorIs(t, err, grant.ErrUnknown)
	require.Zero(t, w.store.total(), "all this without a look into the store")

	d, err := w.UseBound(ctx, token, w.holds(thumbprint, "1"), writes)
	require.NoError(t, err)
	require.Equal(t, thumbprint, d.Key())
	require.Equal(t, 2, d.Left)
	require.True(t, d.Spent())
	require.Equal(t, 1, w.store.count("apply"))
	d, err = w.PrepareBound(ctx, token, w.holds(thumbprint, "2"), writes)
	require.NoError(t, err)
	require.NoError(t, d.Spend(ctx, nil))
	require.Equal(t, 1, d.Left)
	found, err := w.Grants(ctx, "zhang-san", "", false)
	require.NoError(t, err)
	require.Equal(t, thumbprint, found[0].Key)
	require.Equal(t, map[string]int{"issued": 1, "redeemed": 1, "used": 2, "refused": 4}, w.whats("zhang-san"))

	// What is refused otherwise is refused here.
	_, err = w.UseBound(ctx, token, w.holds(thumbprint, "3"), func() (scope.Scope, error) { return scope.MustParse("group:43/message.write"), nil })
	require.ErrorIs(t, err, scope.ErrWrongDomain)
	_, err = w.UseBound(ctx, token, w.holds(thumbprint, "3"), func() (scope.Scope, error) { return write, errStore })
	require.Equal(t, errStore, err)
	require.NoError(t, w.Revoke(ctx, "zhang-san", g.ID))
	_, err = w.UseBound(ctx, token, w.holds(thumbprint, "3"), writes)
	require.ErrorIs(t, err, grant.ErrRevoked)
}

// A token that is bound to no key: who asks hears so, and with no proof it costs what a use costs.
func TestUseBoundOfBearerToken(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	_, err := w.UseBound(ctx, token, w.holds(thumbprint, "1"), writes)
	require.Equal(t, errOtherKey, err)
	w.store.reset()
	d, err := w.UseBound(ctx, token, w.holds("", ""), writes)
	require.NoError(t, err)
	require.Empty(t, d.Key())
	require.Len(t, w.store.batches()[0], 5)
	for id, until := range map[string]time.Time{strings.Repeat("x", 257): start.Add(time.Minute), "1": {}} {
		_, err = w.UseBound(ctx, token, func(string) (string, time.Time, error) { return id, until, nil }, writes)
		require.ErrorIs(t, err, grant.ErrInvalid)
	}
}

// A proof is taken once, in the write that spends: of 64 at once, on two engines, one.
func TestProofOnce(t *testing.T) { stores.Each(t, testProofOnce) }

func testProofOnce(t *testing.T, s stores.Maker) {
	newWorld := on(s)
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = 100 })
	nodes := w.nodes()
	g := w.emit(mention("m1"))
	token := w.bind(g, thumbprint)
	for i := range s.Some(10) {
		id := fmt.Sprint("jti", i)
		errs := together(64, func(i int) error {
			d, err := nodes[i%2].PrepareBound(ctx, token, w.holds(thumbprint, id), writes)
			if err == nil && i%3 > 0 {
				err = d.Spend(ctx, nil)
			} else if err == nil {
				_, err = nodes[i%2].UseBound(ctx, token, w.holds(thumbprint, id), writes)
			}
			return err
		})
		require.Equal(t, 1, winners(t, errs, grant.ErrLimited))
	}
	d, err := w.UseBound(ctx, token, w.holds(thumbprint, "last"), writes)
	require.NoError(t, err)
	require.Equal(t, 100-s.Some(10)-1, d.Left, "who came second spent nothing")
	require.Equal(t, map[string]int{"issued": 1, "redeemed": 1, "used": s.Some(10) + 1, "refused": 63 * s.Some(10)}, w.whats("zhang-san"))

	// It is an account's, and a key's: others may have one of the same name.
	ev := mention("m2")
	ev.Account = "li-si"
	_, err = w.UseBound(ctx, w.bind(w.emit(ev), thumbprint), w.holds(thumbprint, "last"), writes)
	require.NoError(t, err)
	_, err = w.UseBound(ctx, w.bind(w.emit(mention("m3")), "another"), w.holds("another", "last"), writes)
	require.NoError(t, err)
}

// A refused use leaves the proof, since nothing was written; a use whose answer was lost does not spend twice.
func TestProofWithUse(t *testing.T) {
	w := newWorld(t, nil)
	token := w.bind(w.emit(mention("m1")), thumbprint)
	w.setPermit(allow())
	_, err := w.UseBound(ctx, token, w.holds(thumbprint, "1"), writes)
	require.ErrorIs(t, err, grant.ErrDenied)
	w.setPermit(nil)
	lost := false
	w.store.after = func(_ int, call string) error {
		if call == "apply" && !lost {
			lost = true
			return errStore
		}
		return nil
	}
	d, err := w.UseBound(ctx, token, w.holds(thumbprint, "1"), writes)
	require.NoError(t, err, "it was this use")
	require.Equal(t, 2, d.Left)
	_, err = w.UseBound(ctx, token, w.holds(thumbprint, "1"), writes)
	require.ErrorIs(t, err, grant.ErrLimited)
	require.Empty(t, grant.Reason(err))
	require.Len(t, w.store.ofKind(t, "proof"), 1)

	// It goes a minute after it was too old.
	w.clock.advance(2*time.Minute + time.Microsecond)
	_, err = w.Purge(ctx, 1000)
	require.NoError(t, err)
	require.Empty(t, w.store.ofKind(t, "proof"))
}

// A call with a key of Once is made again with another proof, and one with the same proof is no such call.
func TestProofWithOnce(t *testing.T) {
	w := newWorld(t, nil)
	token := w.bind(w.emit(mention("m1")), thumbprint)
	call := func(id string, spend bool) (*grant.Delegation, error) {
		d, err := w.PrepareBound(ctx, token, w.holds(thumbprint, id), writes)
		require.NoError(t, err)
		require.NoError(t, d.Once("key", [32]byte{1}))
		if spend {
			return d, d.Spend(ctx, nil)
		}
		return d, d.Check(ctx)
	}
	_, err := call("1", true)
	require.NoError(t, err)
	for _, spend := range []bool{true, false} {
		_, err = call("1", spend)
		require.ErrorIs(t, err, grant.ErrLimited, "a replay hears nothing of the first call")
		d, err := call(fmt.Sprint("fresh", spend), spend)
		require.ErrorIs(t, err, grant.ErrInvalid)
		state, _, _ := d.Repeat()
		require.Equal(t, "open", state)
		d, err = call(fmt.Sprint("fresh", spend), spend)
		require.ErrorIs(t, err, grant.ErrLimited)
		state, _, _ = d.Repeat()
		require.Empty(t, state)
	}
}
