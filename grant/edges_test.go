package grant_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// harm overwrites the data of all records of a kind.
func (w *world) harm(kind, data string) {
	for _, r := range w.store.ofKind(w.t, kind) {
		r.Data = []byte(data)
		_, err := w.store.Store.Apply(ctx, w.clock.now(), []store.Op{store.Put(r)})
		require.NoError(w.t, err)
	}
}

// erase removes all records of a kind.
func (w *world) erase(kind string) {
	for _, r := range w.store.ofKind(w.t, kind) {
		_, err := w.store.Store.Apply(ctx, w.clock.now(), []store.Op{store.Delete(kind, r.ID, r.Version)})
		require.NoError(w.t, err)
	}
}

// A record that is damaged is an error that names it, and never a gap that is filled.
func TestDamagedRecords(t *testing.T) {
	t.Run("consent", func(t *testing.T) {
		w := newWorld(t, asks(grant.Once))
		_, err := w.Decide(ctx, "zhang-san", w.emit(mention("m1")).ID, true)
		require.NoError(t, err)
		w.harm("consent", "?")
		got, err := w.Emit(ctx, mention("m2"))
		require.ErrorContains(t, err, "record consent")
		require.Empty(t, got)
	})
	t.Run("ledger", func(t *testing.T) {
		w := newWorld(t, nil)
		w.emit(mention("m1"))
		w.harm("ledger", "?")
		_, err := w.Ledger(ctx, "zhang-san", "", 0)
		require.ErrorContains(t, err, "record ledger")
	})
	t.Run("event", func(t *testing.T) {
		w := newWorld(t, nil)
		w.emit(mention("m1"))
		w.harm("event", "?")
		_, err := w.Emit(ctx, mention("m1"))
		require.ErrorIs(t, err, grant.ErrInvalid)
	})
	t.Run("grant", func(t *testing.T) {
		w := newWorld(t, nil)
		g := w.emit(mention("m1"))
		token := w.token("m2")
		for _, data := range []string{"?", "{}", "null", `{"domain":"group:42"}`, `{"domain":"nowhere","state":"issued"}`, `{"state":"issued"}`} {
			w.harm("grant", data)
			_, _, err := w.Redeem(ctx, "bookbot", g.Code)
			require.ErrorContains(t, err, "record grant", data)
			_, err = w.Emit(ctx, mention("m1"))
			require.ErrorContains(t, err, "record grant", data)
		}
		_, err := w.Use(ctx, token, write)
		require.NoError(t, err, "a use does not ask for it")
		require.NoError(t, w.RevokeToken(ctx, "bookbot", grant.NewSecret(token)), "nor does who revokes it")
		_, err = w.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked)
	})
}

// What a store that forgot has lost gives nobody more than they had.
func TestStoreForgets(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Deliver = grant.Push })
	g := w.emit(mention("m1"))
	token := w.token("m2")
	w.erase("token")
	_, err := w.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrUnknown)
	_, err = w.Inspect(ctx, grant.NewSecret(token))
	require.ErrorIs(t, err, grant.ErrUnknown)
	w.erase("grant")
	_, _, err = w.Redeem(ctx, "bookbot", g.Code)
	require.ErrorIs(t, err, grant.ErrUnknown)
	require.ErrorIs(t, w.RevokeToken(ctx, "bookbot", grant.NewSecret(token)), grant.ErrUnknown)
	got, err := w.Claim(ctx, grant.Push, "", nil, 10, time.Second)
	require.NoError(t, err)
	require.Empty(t, got)
	require.Empty(t, w.store.ofKind(t, "push"))

	// Versions that this node has learnt, and the store has lost: it learns anew.
	require.NoError(t, w.RevokeAccount(ctx, "zhang-san"))
	w.emit(mention("m3"))
	w.erase("revocation")
	_, err = w.Use(ctx, w.token("m4"), write)
	require.NoError(t, err)
}

// A stubborn store refuses everything for the same reason.
type stubborn struct {
	store.Store
	out   store.Outcome
	tries int
}

func (s *stubborn) Apply(_ context.Context, _ time.Time, ops []store.Op) (store.Outcome, error) {
	s.tries++
	out := s.out
	if out.Op < 0 {
		out.Op += len(ops)
	}
	out.Version += uint64(s.tries)
	return out, nil
}

func TestStubbornStore(t *testing.T) {
	w := newWorld(t, nil)
	g, token := w.emit(mention("m1")), w.token("m2")
	for op := -5; op < 0; op++ {
		s := &stubborn{Store: w.store, out: store.Outcome{Reason: store.Conflict, Op: op}}
		e := w.In(s)
		_, err := e.Emit(ctx, mention("m3"))
		require.Error(t, err)
		require.LessOrEqual(t, s.tries, 10)
		_, _, err = e.Redeem(ctx, "bookbot", g.Code)
		require.Error(t, err)
		_, err = e.Use(ctx, token, write)
		require.Error(t, err)
	}
	require.Error(t, w.In(&stubborn{Store: w.store, out: store.Outcome{Reason: store.Conflict}}).RevokeAccount(ctx, "zhang-san"))
	_, err := w.In(&stubborn{Store: w.store, out: store.Outcome{Reason: store.Expired, Op: 3}}).Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrExpired, "a store whose clock is told another time")
	_, err = w.Use(ctx, token, write)
	require.NoError(t, err)
}

// refuser has nothing permitted any more, and returns a function that is refused n uses of the token.
func refuser(w *world, token string) func(n int) {
	w.setPermit(allow())
	return func(n int) {
		for range n {
			_, err := w.Use(ctx, token, write)
			require.ErrorIs(w.t, err, grant.ErrDenied)
			w.clock.advance(time.Microsecond)
		}
	}
}

// Refusals that could not be written are counted on, with those that come after.
func TestFlushAgain(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	refuse := refuser(w, token)
	refuse(3)
	w.store.before = func(n int, _ string) error {
		w.store.mu.Unlock()
		refuse(2) // while Flush is at work
		w.store.mu.Lock()
		return errStore
	}
	require.ErrorIs(t, w.Flush(ctx), errStore)
	w.store.reset()
	refuse(4)
	entries := w.ledger("zhang-san")
	require.Equal(t, "refused", entries[0].What)
	require.Equal(t, 9, entries[0].Count)
	require.Equal(t, start, entries[0].At, "since the first of them")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	refuse(1)
	require.ErrorIs(t, w.Flush(cancelled), context.Canceled)
	require.Equal(t, 10, w.whats("zhang-san")["refused"])
}

// A write whose answer was lost is written over by the next, with what came after it.
func TestFlushLostAnswer(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	refuse := refuser(w, token)
	refuse(3)
	w.store.after = func(int, string) error { return errStore }
	require.ErrorIs(t, w.Flush(ctx), errStore)
	require.ErrorIs(t, w.Flush(ctx), errStore)
	w.store.reset()
	refuse(2)
	require.NoError(t, w.Flush(ctx))
	require.Equal(t, 5, w.whats("zhang-san")["refused"])
	require.Equal(t, 5, w.ledger("zhang-san")[0].Count, "as one entry")
	refuse(1)
	require.Equal(t, 6, w.whats("zhang-san")["refused"], "what comes later is an entry of its own")
	require.Equal(t, 1, w.ledger("zhang-san")[0].Count)
}

// Many layers of patterns, each with keywords.
func TestManyBranches(t *testing.T) {
	domain := scope.MustDomain("a:1/a:1/a:1/a:1")
	w := newWorld(t, func(c *grant.Config) {
		c.Triggers = nil
		for depth := 1; depth <= 4; depth++ {
			for wild := range 1 << depth {
				in := ""
				for i := range depth {
					in += "/a:" + []string{"1", "*"}[wild>>i&1]
				}
				c.Triggers = append(c.Triggers, grant.Trigger{ID: in, App: "bookbot", On: grant.MessagePost, In: in[1:], Match: grant.Match{Keywords: []string{"book", "Book me"}},
					Allow: []string{"message.write"}})
			}
		}
	})
	got, err := w.Emit(ctx, grant.Event{ID: "1", Operation: grant.MessagePost, Account: "zhang-san", Domain: domain, Text: "book me a book"})
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, g := range got {
		require.False(t, seen[g.Trigger])
		seen[g.Trigger] = true
	}
	require.Len(t, seen, 2+4+8+16)
}

// Everything at once, on two nodes: whatever the order, it fits together in the end.
func TestEverythingAtOnce(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		c.Triggers[0].Deliver, c.Triggers[0].Uses = grant.Push, 5
		asked := onMention()
		asked.ID, asked.App, asked.Consent = "asked", "weather", grant.Always
		c.Triggers = append(c.Triggers, asked)
	})
	nodes := w.nodes()
	errs := together(16, func(i int) error {
		e, other := nodes[i%2], nodes[(i+1)%2]
		for k := range 20 {
			id := fmt.Sprint(k) // the same events everywhere
			got, err := e.Emit(ctx, mention(id))
			if err != nil {
				return err
			}
			if _, token, err := other.Redeem(ctx, "bookbot", got[0].Code); err == nil {
				for range 7 {
					_, _ = e.Use(ctx, token.Reveal(), write)
				}
			}
			ev := mention("weather " + id)
			ev.App = "weather"
			if got, err = e.Emit(ctx, ev); err != nil {
				return err
			}
			_, _ = other.Decide(ctx, "zhang-san", got[0].ID, k%2 == 0)
			claimed, err := e.Claim(ctx, grant.Push, "", nil, 3, time.Second)
			if err != nil {
				return err
			}
			for _, g := range claimed {
				_ = other.Postpone(ctx, g, w.clock.now())
			}
			if k%5 == i%5 {
				_ = e.Revoke(ctx, "zhang-san", got[0].ID)
			}
			if _, err := other.Grants(ctx, "zhang-san", "", true); err != nil {
				return err
			}
			_ = e.Flush(ctx)
		}
		return nil
	})
	require.Equal(t, 16, winners(t, errs))
	what := w.whats("zhang-san")
	require.Equal(t, 20, what["pending"])
	require.Len(t, w.store.ofKind(t, "grant"), 40)
	require.Len(t, w.store.ofKind(t, "event"), 40)
}
