package sqlstore_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// groups runs groups of calls on one connection.
type groups struct {
	conn *sql.Conn
	*sqlstore.Group
}

func newGroups(t testing.TB, db *sql.DB) *groups {
	t.Helper()
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &groups{conn, sqlstore.NewGroup(conn)}
}

func (g *groups) exec(t testing.TB, query string) {
	t.Helper()
	_, err := g.conn.ExecContext(context.Background(), query)
	require.NoError(t, err)
}

// run carries out the calls in one transaction, which ends as told.
func (g *groups) run(t testing.TB, end string, calls ...*sqlstore.Call) {
	t.Helper()
	g.exec(t, "BEGIN IMMEDIATE")
	_, err := g.Start(t.Context())
	require.NoError(t, err)
	require.NoError(t, g.Run(t.Context(), calls))
	g.exec(t, end)
}

func call(t testing.TB, at time.Time, ops ...store.Op) *sqlstore.Call {
	t.Helper()
	c := new(sqlstore.Call)
	require.NoError(t, c.Set(at, ops))
	return c
}

// anyOps are operations on few records, so that they meet: of each verb, on versions that are often there.
func anyOps(r *rand.Rand) []store.Op {
	aggregate := []string{"a", "b\x00\xff", "c"}[r.IntN(3)]
	var ops []store.Op
	for _, i := range r.Perm(8)[:1+r.IntN(3)] {
		version := []uint64{0, 0, 0, 1, 1, 2, 3, store.AnyVersion}[r.IntN(8)]
		record := store.Record{Kind: []string{"t", "\\l", "ledger"}[r.IntN(3)], ID: fmt.Sprint(aggregate, ".", i), Version: version,
			Owner: []string{"", "li", "\x00"}[r.IntN(3)], App: []string{"", "bookbot"}[r.IntN(2)], Left: int64(r.IntN(4))}
		if r.IntN(3) == 0 {
			record.NotAfter = now.Add(time.Duration(r.IntN(5)-1) * time.Microsecond)
		}
		if r.IntN(4) == 0 {
			record.Due = now.Add(time.Duration(r.IntN(9)) * time.Second)
		}
		if r.IntN(2) == 0 {
			record.Data = []byte(fmt.Sprint("data", r.IntN(100)))
		}
		switch r.IntN(8) {
		case 0, 1, 2:
			ops = append(ops, store.Put(record))
		case 3:
			ops = append(ops, store.Delete(record.Kind, record.ID, version))
		case 4:
			ops = append(ops, store.Check(record.Kind, record.ID, version))
		default:
			op := store.Spend(record.Kind, record.ID, int64(r.IntN(3)), nil)
			if r.IntN(2) == 0 {
				op = store.Spend(record.Kind, record.ID, int64(r.IntN(3)), &record)
			}
			ops = append(ops, op)
		}
	}
	return ops
}

func everything(t testing.TB, s store.Store) (all []store.Record) {
	t.Helper()
	for _, kind := range []string{"t", "\\l", "ledger"} {
		got, err := s.List(t.Context(), store.Query{Kind: kind, Limit: store.MaxPage})
		require.NoError(t, err)
		all = append(all, got...)
	}
	return all
}

// A group is what its calls are one by one: the same outcomes, the same records, whatever else happens in between. What one by one means is said twice: by the
// same database, and by a store that has none of this.
func TestGroupIsOneByOne(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 150
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	here, other := sqliteNodes(t)
	g, stranger := newGroups(t, here), newStore(t, other, sqlstore.SQLite)
	plainDB, _ := sqliteNodes(t)
	for _, db := range []*sql.DB{here, other, plainDB} { // only what others see matters here, and no power will fail
		db.SetMaxOpenConns(2)
		for range 2 {
			_, err := db.Exec("PRAGMA synchronous = OFF")
			require.NoError(t, err)
		}
	}
	g.exec(t, "PRAGMA synchronous = OFF")
	oracles := []store.Store{store.NewMemory(), newStore(t, plainDB, sqlstore.SQLite)}
	ctx := t.Context()
	done := make(map[store.Reason]int)
	for round := range rounds {
		at := now.Add(time.Duration(r.IntN(3)) * time.Microsecond)
		g.SetUnsorted(r.IntN(40))
		var all [][]store.Op
		var calls []*sqlstore.Call
		for range 1 + r.IntN(1+r.IntN(24)) {
			ops := anyOps(r)
			if store.Validate(ops) != nil {
				continue
			}
			all, calls = append(all, ops), append(calls, call(t, at, ops...))
		}
		switch r.IntN(6) {
		case 0: // what is rolled back never was
			g.run(t, "ROLLBACK", calls...)
			g.Forget()
		case 1: // somebody else writes
			ops := anyOps(r)
			if store.Validate(ops) != nil {
				continue
			}
			want, err := oracles[0].Apply(ctx, at, ops)
			require.NoError(t, err)
			for _, s := range []store.Store{oracles[1], stranger} {
				got, err := s.Apply(ctx, at, ops)
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
		case 2: // records leave by other ways
			for _, s := range []store.Store{oracles[0], oracles[1], stranger} {
				for _, kind := range []string{"t", "ledger"} {
					_, err := s.Purge(ctx, kind, at, store.MaxPage)
					require.NoError(t, err)
				}
			}
		default:
			g.run(t, "COMMIT", calls...)
			for i, ops := range all {
				require.NoError(t, calls[i].Err)
				for _, s := range oracles {
					want, err := s.Apply(ctx, at, ops)
					require.NoError(t, err)
					require.Equal(t, want, calls[i].Outcome, "seed %d, round %d, call %d of %d: %+v", seed, round, i, len(all), ops)
				}
				done[calls[i].Outcome.Reason]++
			}
		}
		if round%20 == 19 || round == rounds-1 {
			want := everything(t, oracles[0])
			require.Equal(t, want, everything(t, stranger), "seed %d, round %d", seed, round)
			require.Equal(t, want, everything(t, oracles[1]))
			sound(t, other)
		}
	}
	for reason := range store.Exhausted + 1 {
		require.Greater(t, done[reason], rounds/20, "%v is hardly tried: %v", reason, done)
	}
}

// Each record is written once, and what is known is not looked up again.
func TestGroupCoalesces(t *testing.T) {
	db, _ := sqliteNodes(t)
	x := &tally{Execer: newGroups(t, db).conn}
	g := sqlstore.NewGroup(x)
	run := func(calls ...*sqlstore.Call) (queries, writes int) {
		_, err := x.Execer.ExecContext(t.Context(), "BEGIN IMMEDIATE")
		require.NoError(t, err)
		_, err = g.Start(t.Context())
		require.NoError(t, err)
		x.queries, x.writes = 0, 0
		require.NoError(t, g.Run(t.Context(), calls))
		_, err = x.Execer.ExecContext(t.Context(), "COMMIT")
		require.NoError(t, err)
		return x.queries, x.writes
	}
	var calls []*sqlstore.Call
	for i := range 64 {
		calls = append(calls, call(t, now, store.Check("r", "a.all", 0), store.Spend("t", "a.1", 1, &store.Record{Left: 1000}), store.Put(store.Record{Kind: "ledger", ID: fmt.Sprintf("a.l%02d", i)})))
	}
	queries, writes := run(calls...)
	require.Equal(t, 3, queries, "two records; the end of the log; the last entry of the account")
	require.Equal(t, 2, writes, "65 records: 64, and 1")
	queries, writes = run(call(t, now, store.Check("r", "a.all", 0), store.Spend("t", "a.1", 1, nil), store.Put(store.Record{Kind: "ledger", ID: "a.m"})))
	require.Equal(t, 1, queries, "a further use: where the token was put has not been said; all else is known")
	require.Equal(t, 2, writes)
	spends := []*sqlstore.Call{call(t, now, store.Spend("t", "a.1", 1, nil)), call(t, now, store.Check("r", "a.all", 0), store.Spend("t", "a.1", 1, nil))}
	queries, writes = run(spends...)
	require.Zero(t, queries, "it is known")
	require.Equal(t, 1, writes)
	require.Equal(t, int64(933), spends[1].Outcome.Left)
}

type tally struct {
	sqlstore.Execer
	queries, writes int
}

func (c *tally) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	c.writes++
	return c.Execer.ExecContext(ctx, query, args...)
}

func (c *tally) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	c.queries++
	return c.Execer.QueryContext(ctx, query, args...)
}

// A corrupt record is an error of the calls that need it, and of no other.
func TestGroupWithACorruptRecord(t *testing.T) {
	db, _ := sqliteNodes(t)
	g := newGroups(t, db)
	g.run(t, "COMMIT", call(t, now, store.Put(store.Record{Kind: "t", ID: "a.1", Left: 2})))
	g.exec(t, "PRAGMA ignore_check_constraints = 1")
	g.exec(t, "UPDATE behest_records SET left_uses = -1")
	g.Forget()
	good := call(t, now, store.Put(store.Record{Kind: "t", ID: "a.2", Left: 2}))
	bad := call(t, now, store.Put(store.Record{Kind: "t", ID: "a.3", Left: 2}), store.Spend("t", "a.1", 1, nil))
	g.run(t, "COMMIT", bad, good)
	require.ErrorContains(t, bad.Err, `the record of kind "t" with id "a.1" is corrupt: its left_uses is -1`)
	require.NoError(t, good.Err)
	g.exec(t, "UPDATE behest_records SET left_uses = 5 WHERE id = 'a.1'")
	g.run(t, "COMMIT", bad)
	require.NoError(t, bad.Err, "it was repaired")
	require.Equal(t, store.Outcome{Left: 4}, bad.Outcome)
	got, err := newStore(t, db, sqlstore.SQLite).List(t.Context(), store.Query{Kind: "t"})
	require.NoError(t, err)
	require.Len(t, got, 3)
}

// What it remembers is held against what is there.
func TestGroupFindsOutWhoWritesBehindItsBack(t *testing.T) {
	db, _ := sqliteNodes(t)
	g := newGroups(t, db)
	spend := call(t, now, store.Spend("t", "a.1", 1, &store.Record{Left: 9}))
	g.run(t, "COMMIT", spend)
	g.run(t, "COMMIT", spend)
	g.exec(t, "UPDATE behest_records SET left_uses = 3") // on its own connection, and without Forget
	g.exec(t, "BEGIN IMMEDIATE")
	others, err := g.Start(t.Context())
	require.NoError(t, err)
	require.False(t, others)
	require.ErrorContains(t, g.Run(t.Context(), []*sqlstore.Call{spend}), "0 records were changed instead of 1")
	g.exec(t, "ROLLBACK")
	g.run(t, "COMMIT", spend)
	require.Equal(t, store.Outcome{Left: 2}, spend.Outcome)
}

// A Call is set again as if it were new, and holds nothing of its caller's.
func TestCallSetAgain(t *testing.T) {
	db, _ := sqliteNodes(t)
	g, s := newGroups(t, db), newStore(t, db, sqlstore.SQLite)
	c := new(sqlstore.Call)
	put := func(id string, r store.Record) store.Op {
		r.Kind, r.ID = "t", id
		return store.Put(r)
	}
	for i, ops := range [][]store.Op{
		{put("a.1", store.Record{Owner: "li", App: "bookbot", Left: 3, Due: now, NotAfter: now, Data: bytes.Repeat([]byte("x"), 9000)}), put("a.2", store.Record{Data: []byte("two")}), put("a.3", store.Record{Data: []byte("three")})},
		{store.Check("t", "a.1", 1), store.Spend("t", "a.4", 1, &store.Record{Left: 1})},
		{put("a.5", store.Record{}), put("a.6", store.Record{Data: []byte("six")})},
		{put("a.7", store.Record{Data: []byte("seven")}), put("a.8", store.Record{}), put("a.9", store.Record{Data: []byte("nine")})},
	} {
		require.NoError(t, c.Set(now, ops))
		for i := range ops {
			clear(ops[i].Record.Data)
		}
		g.run(t, "COMMIT", c)
		require.NoError(t, c.Err)
		require.True(t, c.Outcome.Applied(), "call %d: %v", i, c.Outcome)
	}
	require.ErrorIs(t, c.Set(now, []store.Op{store.Spend("t", "a.1", -1, nil)}), store.ErrInvalid)
	got, err := s.List(t.Context(), store.Query{Kind: "t"})
	require.NoError(t, err)
	var data []string
	for _, r := range got {
		data = append(data, string(r.Data[:min(len(r.Data), 9)]))
	}
	require.Equal(t, []string{"xxxxxxxxx", "two", "three", "", "", "six", "seven", "", "nine"}, data)
	require.Len(t, got[0].Data, 9000)
	require.Equal(t, store.Record{Kind: "t", ID: "a.5", Version: 1, Data: got[4].Data}, got[4])
}

func TestCallRefuses(t *testing.T) {
	for _, ops := range [][]store.Op{
		nil,
		{store.Put(store.Record{Kind: "t", ID: "a.1"}), store.Put(store.Record{Kind: "t", ID: "b.1"})},
		{store.Put(store.Record{Kind: "t", ID: "a.1", Due: time.Date(10000, 1, 2, 3, 4, 5, 6, time.UTC)})},
	} {
		err := new(sqlstore.Call).Set(now, ops)
		require.ErrorIs(t, err, store.ErrInvalid)
	}
}

func ExampleGroup() {
	ctx := context.Background()
	db, remove := exampleDB()
	defer remove()
	if err := sqlstore.Migrate(ctx, db, sqlstore.SQLite); err != nil {
		panic(err)
	}
	conn := must(db.Conn(ctx))
	defer conn.Close()
	// Three callers want a use of what has two, in one commit.
	g := sqlstore.NewGroup(conn)
	var calls []*sqlstore.Call
	for range 3 {
		c := new(sqlstore.Call)
		if err := c.Set(now, []store.Op{store.Spend("token", "a1.t7", 1, &store.Record{Owner: "zhang-san", Left: 2})}); err != nil {
			panic(err)
		}
		calls = append(calls, c)
	}
	for _, step := range []func() error{
		func() error { _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); return err },
		func() error { _, err := g.Start(ctx); return err },
		func() error { return g.Run(ctx, calls) },
		func() error { _, err := conn.ExecContext(ctx, "COMMIT"); return err },
	} {
		if err := step(); err != nil {
			panic(err) // in earnest: ROLLBACK, and g.Forget()
		}
	}
	for _, c := range calls {
		fmt.Println(c.Outcome.Reason, c.Outcome.Left)
	}
	// Output:
	// applied 1
	// applied 0
	// exhausted 0
}

// Where the rows are may change under it: VACUUM numbers them anew.
func TestGroupAfterVacuum(t *testing.T) {
	here, other := sqliteNodes(t)
	g := newGroups(t, here)
	var all []*sqlstore.Call
	for i := range 20 {
		all = append(all, call(t, now, store.Put(store.Record{Kind: "t", ID: fmt.Sprint("a.", i), Left: int64(i) + 1})))
	}
	g.run(t, "COMMIT", all...)
	spend := call(t, now, store.Spend("t", "a.19", 1, nil))
	g.run(t, "COMMIT", spend, call(t, now, store.Delete("t", "a.0", 1)), call(t, now, store.Delete("t", "a.7", 1)))
	for _, statement := range []string{"VACUUM", "CREATE TABLE other (x)", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		_, err := other.Exec(statement)
		require.NoError(t, err)
		g.run(t, "COMMIT", spend, call(t, now, store.Put(store.Record{Kind: "t", ID: "a.0", Version: store.AnyVersion})))
	}
	require.Equal(t, store.Outcome{Left: 16}, spend.Outcome)
	got, err := newStore(t, other, sqlstore.SQLite).List(t.Context(), store.Query{Kind: "t"})
	require.NoError(t, err)
	require.Len(t, got, 19)
	for _, r := range got {
		if r.ID == "a.19" {
			require.Equal(t, int64(16), r.Left)
		} else if r.ID != "a.0" {
			require.Equal(t, "a."+fmt.Sprint(r.Left-1), r.ID)
		}
	}
}
