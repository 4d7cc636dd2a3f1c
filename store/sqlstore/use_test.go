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

// A use that meets a claim or a purge of what it spends or checks waits for how that ends, and is decided by that: also where it has looked before.
func TestUseMeetsClaimAndPurge(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	db := openPostgres(t, dsn, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	s, users := newStore(t, db, sqlstore.PostgreSQL), newStore(t, openPostgres(t, dsn, schema, schema), sqlstore.PostgreSQL)
	soon := now.Add(time.Minute)
	claim := func(x store.Store, kind string) error {
		got, err := x.Claim(t.Context(), store.Query{Kind: kind, DueBy: now}, now.Add(time.Hour))
		if err == nil && len(got) != 1 {
			err = fmt.Errorf("%d claimed", len(got))
		}
		return err
	}
	purge := func(x store.Store, kind string) error {
		n, err := x.Purge(t.Context(), kind, soon.Add(time.Second), 10)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d purged", n)
		}
		return err
	}
	account := 0
	for name, c := range map[string]struct {
		meet   func(x store.Store, kind string) error
		kind   string
		put    int           // what the use does with a further record of that kind: nothing, or a Put of that version
		after  store.Outcome // if the other commits; else the use is applied
		record uint64        // the version of that record then
	}{
		"claim of the token":          {meet: claim, kind: "token", after: store.Outcome{Left: 4}, record: 2},
		"purge of the token":          {meet: purge, kind: "token", after: store.Outcome{Reason: store.Missing, Op: 3}},
		"claim of what is checked":    {meet: claim, kind: "revocation", after: store.Outcome{Reason: store.Conflict, Version: 2}, record: 2},
		"purge of what is checked":    {meet: purge, kind: "revocation", after: store.Outcome{Reason: store.Conflict}},
		"claim of what is replaced":   {meet: claim, kind: "ledger", put: 1, after: store.Outcome{Reason: store.Conflict, Op: 4, Version: 2}, record: 2},
		"purge of what is replaced":   {meet: purge, kind: "ledger", put: 1, after: store.Outcome{Reason: store.Conflict, Op: 4}},
		"claim of what is put anyway": {meet: claim, kind: "ledger", put: -1, after: store.Outcome{Left: 4}, record: 3},
		"purge of what is put anyway": {meet: purge, kind: "ledger", put: -1, after: store.Outcome{Left: 4}, record: 1},
	} {
		for _, commit := range []bool{true, false} {
			account++
			of := fmt.Sprint("a", account)
			ops := use(of, 1)
			ops[4].Record.NotAfter = time.Time{}
			tok := token(of, 5)
			id := map[string]string{"token": tok.Record.ID, "revocation": ops[0].Record.ID, "ledger": ops[4].Record.ID}[c.kind]
			if c.kind == "token" {
				tok.Record.Due, tok.Record.NotAfter = now, soon
			} else {
				applied(t, s, store.Put(store.Record{Kind: c.kind, ID: id, Due: now, NotAfter: soon}))
			}
			applied(t, s, tok)
			switch {
			case c.kind == "revocation":
				ops[0].Record.Version = 1
			case c.put > 0:
				ops[4].Record.Version = uint64(c.put)
			case c.put < 0:
				ops[4].Record.Version = store.AnyVersion
			}
			tx := begin(t, db)
			require.NoError(t, c.meet(sqlstore.Tx(tx, sqlstore.PostgreSQL), c.kind), name)
			type answer struct {
				out store.Outcome
				err error
			}
			got := make(chan answer, 1)
			go func() {
				out, err := users.Apply(t.Context(), now, ops)
				got <- answer{out, err}
			}()
			waiting(t, db, schema, 1)
			want, left, version := store.Outcome{Left: 4}, int64(4), uint64(1)
			if c.put != 0 {
				version = 2
			}
			if commit {
				require.NoError(t, tx.Commit())
				want, version = c.after, c.record
				if !want.Applied() {
					left = 5
				}
			} else {
				require.NoError(t, tx.Rollback())
			}
			a := <-got
			require.NoError(t, a.err, name)
			require.Equal(t, want, a.out, "%s, %v", name, commit)
			records, err := s.Get(t.Context(), c.kind, id)
			require.NoError(t, err)
			if version == 0 {
				require.Empty(t, records, name)
			} else {
				require.Len(t, records, 1, name)
				require.Equal(t, version, records[0].Version, "%s, %v", name, commit)
			}
			if c.kind != "token" || version != 0 {
				records, err = s.Get(t.Context(), "token", tok.Record.ID)
				require.NoError(t, err)
				require.Equal(t, left, records[0].Left, "%s, %v", name, commit)
			}
			for _, kind := range []string{"token", "revocation", "ledger"} { // nothing that the next one would claim or purge
				_, err := db.Exec("UPDATE behest_records SET due = NULL, not_after = NULL WHERE kind = $1", kind)
				require.NoError(t, err)
			}
		}
	}
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
