package sqlstore_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// PostgreSQL has a way of its own for calls of the form that every use has. What comes of it is what comes of five operations: whatever is there and whatever is
// asked, the outcome and the records are those of the store in memory.
func TestUseIsFiveOperations(t *testing.T) {
	db, _ := postgresNodes(t, postgresDSN(t))
	s, mem := newStore(t, db, sqlstore.PostgreSQL), store.NewMemory()
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	one := func(from ...uint64) uint64 { return from[random.IntN(len(from))] }
	rounds, seen := 600, make(map[string]int)
	if testing.Short() {
		rounds = 200
	}
	for round := range rounds {
		id := func(s string) string { return fmt.Sprintf("a%d.%s", round, s) }
		var before [][]store.Op
		var ops []store.Op
		for i := range 3 {
			there := one(0, 0, 0, 1, 2)
			for v := range there {
				r := store.Record{Kind: "revocation", ID: id(fmt.Sprint("c", i)), Version: v}
				switch random.IntN(4) {
				case 0:
					r.Due = now
				case 1:
					r.NotAfter = now
				}
				before = append(before, []store.Op{store.Put(r)})
			}
			want := there
			if random.IntN(10) == 0 {
				want = one(0, 1, 2, 3, store.AnyVersion, 1<<63)
			}
			ops = append(ops, store.Check("revocation", id(fmt.Sprint("c", i)), want))
		}
		if random.IntN(10) == 0 {
			ops[1].Record.Kind = "consent"
		}
		if random.IntN(10) > 0 {
			r := store.Record{Kind: "token", ID: id("t"), Owner: "li", Left: int64(one(0, 1, 2, 5, 5, 5, 5, 5))}
			if random.IntN(2) == 0 {
				r.NotAfter = now.Add(time.Duration(random.IntN(4)) * time.Microsecond)
			}
			before = append(before, []store.Op{store.Put(r)})
		}
		ops = append(ops, store.Spend("token", id("t"), int64(one(1, 1, 1, 1, 2, 0)), nil))
		if random.IntN(10) == 0 {
			ops[3] = store.Spend("token", id("t"), 1, &store.Record{Left: 3, Owner: "wang"})
		}
		entry := store.Record{Kind: "ledger", ID: id("l"), Owner: "li", App: "bookbot", Left: int64(one(0, 7)), Data: []byte(fmt.Sprint("entry", round))}
		if random.IntN(2) == 0 {
			entry.NotAfter, entry.Due = now.Add(time.Hour), now
		}
		if random.IntN(10) == 0 {
			before = append(before, []store.Op{store.Put(store.Record{Kind: "ledger", ID: id("l"), App: "first"})})
			entry.Version = one(0, 1, store.AnyVersion)
		}
		ops = append(ops, store.Put(entry))
		for _, b := range before {
			want, err := mem.Apply(t.Context(), now, b)
			require.NoError(t, err)
			got, err := s.Apply(t.Context(), now, b)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		want, err := mem.Apply(t.Context(), now, ops)
		require.NoError(t, err)
		got, err := s.Apply(t.Context(), now, ops)
		require.NoError(t, err)
		require.Equal(t, want, got, "round %d: %+v after %+v", round, ops, before)
		seen[want.Reason.String()]++
		for _, kind := range []string{"revocation", "consent", "token", "ledger"} {
			q := store.Query{Kind: kind, Prefix: id("")}
			want, err := mem.List(t.Context(), q)
			require.NoError(t, err)
			got, err := s.List(t.Context(), q)
			require.NoError(t, err)
			require.Equal(t, want, got, "round %d: %+v after %+v", round, ops, before)
		}
	}
	t.Log(seen)
	for _, r := range []store.Reason{0, store.Conflict, store.Missing, store.Expired, store.Exhausted} {
		require.NotZero(t, seen[r.String()], r)
	}
}

// What a use has checked does not change before its transaction ends: a claim leaves it alone, and so it does the token.
func TestUseHoldsWhatItChecked(t *testing.T) {
	db, _ := postgresNodes(t, postgresDSN(t))
	s := newStore(t, db, sqlstore.PostgreSQL)
	tok := token("a", 5)
	tok.Record.Due = now
	ops := use("a", 1)
	ops[0].Record.Version = 1
	applied(t, s, tok, store.Put(store.Record{Kind: "revocation", ID: ops[0].Record.ID, Due: now, NotAfter: now}))
	tx := begin(t, db)
	applied(t, sqlstore.Tx(tx, sqlstore.PostgreSQL), ops...)
	for _, kind := range []string{"revocation", "token"} {
		got, err := s.Claim(t.Context(), store.Query{Kind: kind, DueBy: now}, now.Add(time.Minute))
		require.NoError(t, err)
		require.Empty(t, got)
	}
	n, err := s.Purge(t.Context(), "revocation", now.Add(time.Hour), 10)
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, tx.Commit())
	got, err := s.Claim(t.Context(), store.Query{Kind: "revocation", DueBy: now}, now.Add(time.Minute))
	require.NoError(t, err)
	require.Len(t, got, 1)
}

// A refusal writes nothing, not even a lock on a row, so it costs the server no flush to the disk: who comes with a token that is used up, again and again, is
// cheaper than who has one.
func TestRefusalWritesNothing(t *testing.T) {
	db, _ := postgresNodes(t, postgresDSN(t))
	s := newStore(t, db, sqlstore.PostgreSQL)
	spent := token("a", 1)
	spent.Record.Due = now
	applied(t, s, spent)
	applied(t, s, use("a", 0)...)
	old := token("b", 5)
	old.Record.NotAfter = now
	applied(t, s, old, store.Put(store.Record{Kind: "revocation", ID: "b.x", Due: now, NotAfter: now}))
	for want, ops := range map[store.Reason][]store.Op{
		store.Exhausted: use("a", 1), store.Expired: use("b", 1), store.Missing: use("c", 1),
		store.Conflict: {store.Spend("count", "b.c", 1, &store.Record{Left: 9}), store.Check("revocation", "b.x", 1), store.Put(store.Record{Kind: "token", ID: old.Record.ID})},
	} {
		tx := begin(t, db)
		out, err := sqlstore.Tx(tx, sqlstore.PostgreSQL).Apply(t.Context(), now, ops)
		require.NoError(t, err)
		require.Equal(t, want, out.Reason)
		var wrote bool
		require.NoError(t, tx.QueryRow("SELECT txid_current_if_assigned() IS NOT NULL").Scan(&wrote))
		require.False(t, wrote, "%v: the transaction has written", want)
		require.NoError(t, tx.Commit())
	}
}
