package grant_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

func (w *world) prepare(token string) *grant.Delegation {
	w.t.Helper()
	d, err := w.Prepare(ctx, token, write)
	require.NoError(w.t, err)
	return d
}

// once is a call with a key.
func once(e *grant.Engine, token, key string, request byte) (*grant.Delegation, error) {
	d, err := e.Prepare(ctx, token, write)
	if err == nil {
		err = d.Once(key, [32]byte{request})
	}
	if err == nil {
		err = d.Spend(ctx, nil)
	}
	return d, err
}

func (w *world) left(token string) int {
	w.t.Helper()
	d, err := w.Inspect(ctx, grant.NewSecret(token))
	if errors.Is(err, grant.ErrUsedUp) {
		return 0
	}
	require.NoError(w.t, err)
	return d.Left
}

// first is what a call that was refused learns of the one before.
type first struct {
	State  string
	Age    time.Duration
	Answer []byte
}

func repeat(t testing.TB, d *grant.Delegation, err error) (f first) {
	t.Helper()
	require.ErrorIs(t, err, grant.ErrInvalid)
	require.ErrorContains(t, err, "key")
	require.Empty(t, grant.Reason(err))
	f.State, f.Age, f.Answer = d.Repeat()
	return f
}

// A Delegation that is not spent says so; once it is, it says what Use would have said.
func TestPrepare(t *testing.T) {
	var seen []grant.Entry
	w := newWorld(t, func(c *grant.Config) {
		c.Observe = func(_ context.Context, e grant.Entry) { seen = append(seen, e) }
	})
	asked := 0
	w.setPermit(func(_ context.Context, a grant.Access) error { asked++; return nil })
	token := w.token("m1")
	used, err := w.Use(ctx, token, write)
	require.NoError(t, err)
	require.True(t, used.Spent())
	require.ErrorIs(t, used.Spend(ctx, nil), grant.ErrInvalid)
	inspected, err := w.Inspect(ctx, grant.NewSecret(token))
	require.NoError(t, err)
	require.ErrorIs(t, inspected.Spend(ctx, nil), grant.ErrInvalid)
	require.ErrorIs(t, inspected.Check(ctx), grant.ErrInvalid)
	require.ErrorIs(t, inspected.Once("k", [32]byte{}), grant.ErrInvalid)
	require.ErrorIs(t, inspected.Answered(ctx, nil), grant.ErrInvalid)
	state, _, _ := inspected.Repeat()
	require.Empty(t, state)

	w.store.reset()
	asked, seen = 0, nil
	d := w.prepare(token)
	require.False(t, d.Spent())
	require.Zero(t, d.Left)
	require.Zero(t, asked)
	require.NoError(t, d.Check(ctx))
	require.Equal(t, 1, asked)
	require.Zero(t, w.store.total(), "nothing of this asks the store")
	w.clock.advance(time.Second)
	require.NoError(t, d.Spend(ctx, nil))
	require.Equal(t, 2, asked)
	require.Equal(t, 1, w.store.total(), "one Apply is the whole of it")
	require.True(t, d.Spent())
	require.Equal(t, 1, d.Left)
	require.Equal(t, used.Granted(), d.Granted())
	require.Len(t, seen, 1)
	require.Equal(t, start.Add(time.Second), seen[0].At)
	require.Equal(t, 1, seen[0].Left)
	entry := w.ledger("zhang-san")[0]
	require.Equal(t, grant.Entry{ID: entry.ID, At: seen[0].At, What: "used", Account: "zhang-san", App: "bookbot", Grant: d.Grant, Scope: write.String(), Count: 1}, entry)

	// It is for one time.
	for range 2 {
		err := d.Spend(ctx, nil)
		require.ErrorIs(t, err, grant.ErrInvalid)
		require.Empty(t, grant.Reason(err))
	}
	require.True(t, d.Spent())
	require.Equal(t, 1, d.Left)
	require.Equal(t, 1, w.left(token))
	require.Len(t, seen, 1)

	// The last use; then to spend again is still a second time, and not one too many.
	d = w.prepare(token)
	require.NoError(t, d.Spend(ctx, nil))
	require.Zero(t, d.Left)
	require.ErrorIs(t, d.Spend(ctx, nil), grant.ErrInvalid)
}

// Spend refuses what Use refuses, with the same errors, on record, and may be tried again.
func TestSpendRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(w *world, token string) // Prepare
		after  func(w *world, token string)
		want   error
	}{
		{"forged", func(*world, string) {}, nil, grant.ErrUnknown},
		{"expired before", func(w *world, _ string) { w.clock.advance(time.Hour) }, nil, grant.ErrExpired},
		{"expired since", nil, func(w *world, _ string) { w.clock.advance(time.Hour) }, grant.ErrExpired},
		{"used up since", nil, func(w *world, token string) {
			for range 3 {
				_, err := w.Use(ctx, token, write)
				require.NoError(t, err)
			}
		}, grant.ErrUsedUp},
		{"revoked since", nil, func(w *world, _ string) { require.NoError(t, w.RevokeAccount(ctx, "zhang-san")) }, grant.ErrRevoked},
		{"the app revoked since", nil, func(w *world, _ string) { require.NoError(t, w.RevokeApp(ctx, "zhang-san", "bookbot", group)) }, grant.ErrRevoked},
		{"the app suspended since", nil, func(w *world, _ string) { w.change(change{suspendApps: []string{"bookbot"}}) }, grant.ErrRevoked},
		{"the trigger suspended since", nil, func(w *world, _ string) { w.change(change{suspend: []string{"mention"}}) }, grant.ErrRevoked},
		{"the app removed since, and added again", nil, func(w *world, _ string) {
			w.change(change{removeApps: []string{"bookbot"}})
			w.change(change{put: []grant.App{bookbot()}, set: []grant.Trigger{onMention()}})
		}, grant.ErrRevoked},
		{"the app registered for less since", nil, func(w *world, _ string) {
			w.change(change{put: []grant.App{{ID: "bookbot"}}, remove: []string{"mention"}})
		}, grant.ErrDenied},
		{"rights lost since", nil, func(w *world, _ string) { w.setPermit(allow()) }, grant.ErrDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := alone(t, nil)
			token := w.token("m1")
			asked := token
			if tc.name == "forged" {
				asked = strings.Repeat("x", len(token))
			}
			if tc.before != nil {
				tc.before(w, token)
			}
			d, err := w.Prepare(ctx, asked, write)
			if tc.before != nil {
				require.ErrorIs(t, err, tc.want)
				require.Nil(t, d)
			} else {
				require.NoError(t, err)
				tc.after(w, token)
				uses := w.whats("zhang-san")["used"]
				for range 2 {
					err := d.Spend(ctx, nil)
					require.ErrorIs(t, err, tc.want)
					require.False(t, d.Spent())
					require.Zero(t, d.Left)
				}
				require.Equal(t, 2, w.whats("zhang-san")["refused"])
				require.Equal(t, uses, w.whats("zhang-san")["used"])
			}
			if reason := grant.Reason(tc.want); reason != "" {
				require.Equal(t, reason, w.ledger("zhang-san")[0].Reason)
			}
		})
	}

	w := newWorld(t, nil)
	token := w.token("m1")
	_, err := w.Prepare(ctx, token, scope.MustParse("group:7/message.write"))
	require.ErrorIs(t, err, scope.ErrWrongDomain)
	_, err = w.Prepare(ctx, token, scope.MustParse("group:42/member.read"))
	require.ErrorIs(t, err, scope.ErrWrongAction)
	require.Equal(t, 2, w.whats("zhang-san")["refused"])
	fault := errors.New("no such post")
	_, err = w.PrepareFunc(ctx, token, func() (scope.Scope, error) { return scope.Scope{}, fault })
	require.Equal(t, fault, err)
	_, err = w.PrepareFunc(ctx, "bhst_forged", func() (scope.Scope, error) { t.Error("asked for a stranger"); return write, nil })
	require.ErrorIs(t, err, grant.ErrUnknown)

	// What was refused is spent when it may be.
	d := w.prepare(token)
	w.setPermit(allow())
	require.ErrorIs(t, d.Check(ctx), grant.ErrDenied)
	require.ErrorIs(t, d.Spend(ctx, nil), grant.ErrDenied)
	broken := errors.New("the directory is away")
	w.setPermit(func(context.Context, grant.Access) error { return broken })
	w.store.reset()
	require.ErrorIs(t, d.Spend(ctx, nil), broken)
	require.Zero(t, w.store.total(), "Permit comes before the first statement")
	w.setPermit(nil)
	require.NoError(t, d.Spend(ctx, nil))
	require.Equal(t, 2, d.Left)
}

// However the store fails, one Delegation is one use at most, and it is known which.
func TestSpendLostAnswers(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	away := func(int, string) error { return errStore }
	for name, in := range map[string]func() store.Store{
		"the caller's store": func() store.Store { return w.store },
		"its own":            func() store.Store { return nil },
	} {
		before := w.left(token)
		d := w.prepare(token)
		require.NoError(t, d.Once(name, [32]byte{}))
		w.store.before = away
		require.ErrorIs(t, d.Spend(ctx, in()), errStore)
		require.False(t, d.Spent())
		w.store.reset()
		require.Equal(t, before, w.left(token), name)

		w.store.reset()
		w.store.after = func(n int, _ string) error {
			if n == 1 {
				return errStore
			}
			return nil
		}
		err := d.Spend(ctx, in())
		if in() != nil { // it may be a transaction's, which must not be tried again from here
			require.ErrorIs(t, err, errStore)
			require.False(t, d.Spent())
			err = d.Spend(ctx, in())
		}
		require.NoError(t, err, name)
		require.True(t, d.Spent())
		require.Equal(t, before-1, d.Left)
		w.store.reset()
		require.Equal(t, before-1, w.left(token))
		require.ErrorIs(t, d.Spend(ctx, in()), grant.ErrInvalid)
		require.NoError(t, d.Answered(ctx, []byte("done")))
		d, err = once(w.Engine, token, name, 0)
		require.Equal(t, "done", string(repeat(t, d, err).Answer))
	}
	require.Equal(t, 2, w.whats("zhang-san")["used"])

	// A caller who has given up is not tried for again.
	d := w.prepare(token)
	gone, cancel := context.WithCancel(ctx)
	w.store.reset()
	w.store.before = func(int, string) error { cancel(); return gone.Err() }
	require.ErrorIs(t, d.Spend(gone, nil), context.Canceled)
	require.Equal(t, 1, w.store.total())
}

// One Delegation in many hands is spent once.
func TestSpendTogether(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	d := w.prepare(token)
	require.Equal(t, 1, winners(t, together(64, func(int) error { return d.Spend(ctx, nil) }), grant.ErrInvalid))
	require.Equal(t, 2, w.left(token))
	require.Equal(t, 1, w.whats("zhang-san")["used"])

	// Many Delegations of one token: as many as there are uses.
	nodes := w.nodes()
	errs := together(64, func(i int) error {
		d, err := nodes[i%2].Prepare(ctx, token, write)
		if err != nil {
			return err
		}
		return d.Spend(ctx, w.store)
	})
	require.Equal(t, 2, winners(t, errs, grant.ErrUsedUp))
}

// P3 Counted: with a key, a call happens once, whatever happens at the same time; the others learn what became of it.
func TestP3Once(t *testing.T) {
	w := newWorld(t, nil)
	token, nodes := w.token("m1"), w.nodes()
	for round := range 3 {
		key := fmt.Sprint("key", round)
		ds := make([]*grant.Delegation, 64)
		errs := together(64, func(i int) (err error) { ds[i], err = once(nodes[i%2], token, key, 1); return err })
		require.Equal(t, 1, winners(t, errs, grant.ErrInvalid))
		for i, err := range errs {
			if err != nil {
				require.Equal(t, first{State: "open"}, repeat(t, ds[i], err))
			}
		}
		require.Equal(t, 2-round, w.left(token))
	}
	require.Equal(t, 3, w.whats("zhang-san")["used"])
	require.Zero(t, w.whats("zhang-san")["refused"], "a repeat is no refusal of the token")
}

func TestOnce(t *testing.T) {
	w := newWorld(t, nil)
	token, other := w.token("m1"), w.token("m2")
	w.store.reset()
	d, err := once(w.Engine, token, "k", 1)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"apply": 1}, w.store.calls, "the key is written with the use")
	records := w.store.ofKind(t, "once")
	require.Len(t, records, 1)
	require.Equal(t, "zhang-san", records[0].Owner)
	require.Equal(t, "bookbot", records[0].App)
	require.Equal(t, d.NotAfter, records[0].NotAfter)
	require.NotContains(t, records[0].ID, "k.")

	w.clock.advance(3 * time.Second)
	again, err := once(w.Engine, token, "k", 1)
	require.Equal(t, first{State: "open", Age: 3 * time.Second}, repeat(t, again, err))
	again, err = once(w.Engine, token, "k", 2)
	require.Equal(t, first{State: "other"}, repeat(t, again, err))
	_, err = once(w.Engine, other, "k", 1)
	require.NoError(t, err, "the key of another grant is another key")
	_, err = once(w.Engine, token, "K", 1)
	require.NoError(t, err)

	require.NoError(t, d.Answered(ctx, []byte("\x00done\xff")))
	require.ErrorIs(t, d.Answered(ctx, []byte("otherwise")), grant.ErrInvalid)
	for range 2 {
		again, err = once(w.another(), token, "k", 1)
		require.Equal(t, first{"over", 3 * time.Second, []byte("\x00done\xff")}, repeat(t, again, err))
	}
	require.Equal(t, 1, w.left(token))

	// Asked before, in one look, it is the same; a key that is free stays so.
	look := w.prepare(token)
	require.NoError(t, look.Once("k", [32]byte{1}))
	require.Equal(t, "over", repeat(t, look, look.Check(ctx)).State)
	free := w.prepare(token)
	require.NoError(t, free.Once("free", [32]byte{1}))
	w.store.reset()
	require.NoError(t, free.Check(ctx))
	require.Equal(t, map[string]int{"apply": 1}, w.store.calls)
	require.ErrorIs(t, free.Answered(ctx, nil), grant.ErrInvalid, "before it is spent")

	// A key is remembered when the token is used up: that is what it is for.
	require.NoError(t, free.Spend(ctx, nil))
	require.ErrorIs(t, free.Once("again", [32]byte{}), grant.ErrInvalid)
	require.NoError(t, free.Answered(ctx, nil))
	require.Zero(t, w.left(token))
	again, err = once(w.Engine, token, "free", 1)
	require.Equal(t, first{State: "over"}, repeat(t, again, err))
	_, err = once(w.Engine, token, "new", 1)
	require.ErrorIs(t, err, grant.ErrUsedUp)

	// Not for who may no more, nor for a token that is over.
	w.setPermit(allow())
	_, err = once(w.Engine, token, "k", 1)
	require.ErrorIs(t, err, grant.ErrDenied)
	state, _, _ := again.Repeat()
	require.Equal(t, "over", state)
	look = w.prepare(token)
	require.NoError(t, look.Once("k", [32]byte{1}))
	require.ErrorIs(t, look.Check(ctx), grant.ErrDenied)
	w.setPermit(nil)
	require.NoError(t, w.Revoke(ctx, "zhang-san", d.Grant))
	_, err = once(w.Engine, token, "k", 1)
	require.ErrorIs(t, err, grant.ErrRevoked)
	require.ErrorIs(t, look.Check(ctx), grant.ErrRevoked)
	w.clock.set(d.NotAfter)
	_, err = once(w.Engine, token, "k", 1)
	require.ErrorIs(t, err, grant.ErrExpired)
	require.ErrorIs(t, look.Check(ctx), grant.ErrExpired)

	for _, key := range []string{"", strings.Repeat("k", 256)} {
		w.clock.set(start)
		require.ErrorIs(t, w.prepare(other).Once(key, [32]byte{}), grant.ErrInvalid)
	}
	require.NoError(t, w.prepare(other).Once(strings.Repeat("\xff", 255), [32]byte{}))
}

// What was answered goes an hour after the token's end, and not before.
func TestOncePurge(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	d, err := once(w.Engine, token, "k", 1)
	require.NoError(t, err)
	require.NoError(t, d.Answered(ctx, []byte("what zhang-san's app was told")))
	w.clock.set(d.NotAfter.Add(time.Hour))
	_, err = w.Purge(ctx, 1000)
	require.NoError(t, err)
	require.Len(t, w.store.ofKind(t, "once"), 1)
	w.clock.advance(time.Microsecond)
	_, err = w.Purge(ctx, 1000)
	require.NoError(t, err)
	require.Empty(t, w.store.ofKind(t, "once"))
}

// A record that is not whole is an error that names it: neither a repeat nor a use.
func TestOnceDamaged(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	_, err := once(w.Engine, token, "k", 1)
	require.NoError(t, err)
	r := w.store.ofKind(t, "once")[0]
	for _, data := range []string{"", "null", "{", `{"request":7}`, `{"request":"x"}`, `{"at":1}`, `{"request":"x","at":1,"answer":"?"}`, "\xff"} {
		r.Data, r.Version = []byte(data), store.AnyVersion
		_, err := w.store.Apply(ctx, start, []store.Op{store.Put(r)})
		require.NoError(t, err)
		d, err := once(w.Engine, token, "k", 1)
		require.ErrorContains(t, err, "once "+r.ID, "%q", data)
		require.NotErrorIs(t, err, grant.ErrInvalid)
		state, _, _ := d.Repeat()
		require.Empty(t, state)
	}
	require.Equal(t, 2, w.left(token))
}

// What nobody knows is whether a try was committed; a refusal of the next one is about that next one alone.
func TestSpendRevokedBetweenTries(t *testing.T) {
	w := newWorld(t, nil)
	d, err := w.Prepare(ctx, w.token("m1"), write)
	require.NoError(t, err)
	w.store.reset()
	w.store.after = func(int, string) error { return errStore }
	require.ErrorIs(t, d.Spend(ctx, w.store), errStore)
	w.store.reset()
	require.NoError(t, w.Revoke(ctx, "zhang-san", d.Grant))
	require.ErrorIs(t, d.Spend(ctx, w.store), grant.ErrRevoked)
	require.False(t, d.Spent())
	require.Equal(t, 1, w.whats("zhang-san")["used"], "and yet it was")
	require.EqualValues(t, 2, w.store.ofKind(t, "token")[0].Left)
}
