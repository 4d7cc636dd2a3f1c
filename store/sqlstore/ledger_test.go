package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

func entry(id string, version uint64) store.Op {
	return store.Put(store.Record{Kind: "ledger", ID: id, Version: version, Owner: "li", App: "bookbot", NotAfter: now, Data: []byte(id)})
}

// logged is how many entries there are, and how many of them are in the index.
func logged(t testing.TB, db *sql.DB) (all, indexed int) {
	t.Helper()
	require.NoError(t, db.QueryRow("SELECT (SELECT count(*) FROM behest_log), (SELECT count(*) FROM behest_log_indexed)").Scan(&all, &indexed))
	return all, indexed
}

// sound holds that each row of the log is where it belongs, once, and that the index is in order.
func sound(t testing.TB, db *sql.DB) {
	t.Helper()
	var rows, reached, sorted int
	require.NoError(t, db.QueryRow("SELECT (SELECT count(*) FROM behest_log), (SELECT count(*) FROM behest_ledger), (SELECT n FROM behest_log_sorted)").Scan(&rows, &reached, &sorted))
	require.Equal(t, rows, reached)
	all, err := db.Query("SELECT r.first_id, x.id, x.n FROM behest_log_runs r LEFT JOIN behest_log_indexed x ON x.first_id = r.first_id ORDER BY r.first_id, x.place")
	require.NoError(t, err)
	defer all.Close()
	last := ""
	for all.Next() {
		var first, id string
		var n int
		require.NoError(t, all.Scan(&first, &id, &n), "a run of nothing")
		require.LessOrEqual(t, first, id)
		require.Less(t, last, id)
		require.LessOrEqual(t, n, sorted)
		last = id
	}
	require.NoError(t, all.Err())
}

func ledger(t testing.TB, s store.Store, q store.Query) (ids []string) {
	t.Helper()
	q.Kind = "ledger"
	got, err := s.List(t.Context(), q)
	require.NoError(t, err)
	for _, r := range got {
		require.Equal(t, "ledger", r.Kind)
		ids = append(ids, r.ID)
	}
	return ids
}

// Entries are there at once, in order and for all, whether they are in the index or not.
func TestLedgerBeforeAndAfterItIsSorted(t *testing.T) {
	here, other := sqliteNodes(t)
	g, reader := newGroups(t, here), newStore(t, other, sqlstore.SQLite)
	for i, calls := range [][]*sqlstore.Call{
		{call(t, now, entry("b.2", 0)), call(t, now, entry("a.3", 0))},
		{call(t, now, entry("a.1", 0)), call(t, now, entry("c", 0)), call(t, now, entry("a.2", 0))},
		{call(t, now, entry("a!", 0)), call(t, now, entry("a.0", 0))},
	} {
		g.SetUnsorted(3)
		g.run(t, "COMMIT", calls...)
		all, indexed := logged(t, other)
		require.Equal(t, []int{2, 5, 7}[i], all)
		require.Equal(t, []int{0, 5, 5}[i], indexed)
	}
	require.Equal(t, []string{"a!", "a.0", "a.1", "a.2", "a.3", "b.2", "c"}, ledger(t, reader, store.Query{}))
	require.Equal(t, []string{"a.3", "a.2"}, ledger(t, reader, store.Query{Prefix: "a.", Reverse: true, Limit: 2}))
	require.Equal(t, []string{"a.1", "a.0"}, ledger(t, reader, store.Query{Prefix: "a.", Reverse: true, After: "a.2"}))
	require.Equal(t, []string{"a.3", "b.2", "c"}, ledger(t, reader, store.Query{App: "bookbot", After: "a.2"}))
	got, err := reader.Get(t.Context(), "ledger", "a.0", "nobody", "a.3")
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.Equal(t, store.Record{Kind: "ledger", ID: "a.0", Version: 1, Owner: "li", App: "bookbot", NotAfter: now, Data: []byte("a.0")}, got[0])
}

// What came before others of its account and has a later ID comes after them, from one commit to the next and from one sort to the next.
func TestLedgerOutOfOrder(t *testing.T) {
	db, _ := sqliteNodes(t)
	g, s := newGroups(t, db), newStore(t, db, sqlstore.SQLite)
	var want []string
	for round := range 3 {
		g.SetUnsorted(99)
		for i := range 45 {
			id := fmt.Sprintf("a.%02d%d", 99-i, round)
			g.run(t, "COMMIT", call(t, now, entry(id, 0)))
			want = append(want, id)
		}
		g.SetUnsorted(0)
		g.run(t, "COMMIT", call(t, now, store.Check("ledger", "b", 0)))
		slices.Sort(want)
		require.Equal(t, want, ledger(t, s, store.Query{Limit: store.MaxPage}))
		_, indexed := logged(t, db)
		require.Equal(t, len(want), indexed)
		sound(t, db)
	}
}

// What is there is found, wherever it is, and by whomever it was written.
func TestLedgerConflicts(t *testing.T) {
	here, other := sqliteNodes(t)
	one, two := newGroups(t, here), newGroups(t, other)
	one.run(t, "COMMIT", call(t, now, entry("a.5", 0)))
	for _, g := range []*groups{one, two} {
		c, d := call(t, now, entry("a.5", 0)), call(t, now, store.Check("ledger", "a.5", 1))
		g.run(t, "COMMIT", c, d)
		require.Equal(t, store.Outcome{Reason: store.Conflict, Version: 1}, c.Outcome)
		require.True(t, d.Outcome.Applied())
	}
	// Two take turns, each knowing what the other has written, in the index and after it.
	for i := range 30 {
		g, g2 := one, two
		if i%2 == 1 {
			g, g2 = two, one
		}
		g.SetUnsorted(i % 7)
		id := fmt.Sprintf("a.%02d", 90-i)
		g.run(t, "COMMIT", call(t, now, entry(id, 0)))
		again, next := call(t, now, entry(id, 0)), call(t, now, entry(id, 1))
		g2.run(t, "COMMIT", again, next)
		require.Equal(t, store.Conflict, again.Outcome.Reason, "%s", id)
		require.True(t, next.Outcome.Applied())
	}
	require.Len(t, ledger(t, newStore(t, here, sqlstore.SQLite), store.Query{}), 31)
}

// What is taken back was never there, whether it was an entry or that all were sorted.
func TestLedgerRolledBack(t *testing.T) {
	here, other := sqliteNodes(t)
	g := newGroups(t, here)
	g.run(t, "COMMIT", call(t, now, entry("a.1", 0)))
	for _, unsorted := range []int{9, 0} {
		g.SetUnsorted(unsorted)
		g.run(t, "ROLLBACK", call(t, now, entry("a.2", 0)), call(t, now, entry("b.1", 0)))
		g.Forget()
		all, indexed := logged(t, other)
		require.Equal(t, []int{1, 0}, []int{all, indexed})
		gone := call(t, now, store.Check("ledger", "a.2", 0))
		g.SetUnsorted(9)
		g.run(t, "COMMIT", gone)
		require.True(t, gone.Outcome.Applied())
	}
	again := call(t, now, entry("a.2", 0))
	g.run(t, "COMMIT", again, call(t, now, store.Delete("ledger", "a.1", 1)))
	require.True(t, again.Outcome.Applied())
	require.Equal(t, []string{"a.2"}, ledger(t, newStore(t, other, sqlstore.SQLite), store.Query{}))
}

// Who takes back what it wrote looks anew at what others write in its place, also if all were sorted in between.
func TestLedgerRolledBackAmongOthers(t *testing.T) {
	for name, sort := range map[string]func(t *testing.T, g, other *groups){
		"by the other, before": func(t *testing.T, g, other *groups) {
			other.SetUnsorted(0)
			other.run(t, "COMMIT", call(t, now, entry("a.9", 0)))
			g.run(t, "ROLLBACK", call(t, now, entry("x.1", 0)), call(t, now, entry("x.2", 0)))
		},
		"by both": func(t *testing.T, g, other *groups) {
			g.run(t, "ROLLBACK", call(t, now, store.Check("ledger", "a.1", 1)), call(t, now, entry("x.1", 0)), call(t, now, entry("x.2", 0)))
			other.run(t, "COMMIT", call(t, now, store.Check("ledger", "a.1", 1)))
		},
		"by it": func(t *testing.T, g, _ *groups) {
			g.SetUnsorted(0)
			g.run(t, "ROLLBACK", call(t, now, entry("x.1", 0)), call(t, now, entry("x.2", 0)))
		},
		"by none": func(t *testing.T, g, _ *groups) {
			g.run(t, "ROLLBACK", call(t, now, entry("x.1", 0)), call(t, now, entry("x.2", 0)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			one, two := sqliteNodes(t)
			g, other := newGroups(t, one), newGroups(t, two)
			for i := range 5 {
				g.run(t, "COMMIT", call(t, now, entry(fmt.Sprint("a.", i), 0)))
			}
			sort(t, g, other)
			g.Forget()
			g.SetUnsorted(99)
			other.SetUnsorted(99)
			other.run(t, "COMMIT", call(t, now, entry("b.1", 0)))
			taken, free := call(t, now, entry("b.1", 0)), call(t, now, entry("x.1", 0))
			g.run(t, "COMMIT", taken)
			require.Equal(t, store.Outcome{Reason: store.Conflict, Version: 1}, taken.Outcome)
			g.run(t, "COMMIT", free)
			require.True(t, free.Outcome.Applied())
		})
	}
}

// A row that is gone gives its number to no other while the index goes by numbers.
func TestLedgerAfterItsLastIsGone(t *testing.T) {
	db, _ := sqliteNodes(t)
	g, s := newGroups(t, db), newStore(t, db, sqlstore.SQLite)
	for i := range 5 {
		id := fmt.Sprint("a.", i)
		g.run(t, "COMMIT", call(t, now, entry(id, 0)))
		if i%2 == 0 {
			g.run(t, "COMMIT", call(t, now, store.Delete("ledger", id, 1)))
		} else {
			removed, err := s.Purge(t.Context(), "ledger", now.Add(time.Second), 10)
			require.NoError(t, err)
			require.Equal(t, 1, removed)
		}
		g.run(t, "COMMIT", call(t, now, entry("b.1", 0)))
		require.Equal(t, []string{"b.1"}, ledger(t, s, store.Query{}), "round %d", i)
		g.run(t, "COMMIT", call(t, now, store.Delete("ledger", "b.1", store.AnyVersion)))
		all, indexed := logged(t, db)
		require.Equal(t, []int{0, 0}, []int{all, indexed})
	}
}

// A Purge goes by what is over now, across the parts of the log.
func TestLedgerPurge(t *testing.T) {
	db, _ := sqliteNodes(t)
	g, s := newGroups(t, db), newStore(t, db, sqlstore.SQLite)
	const total = 20_000
	var calls []*sqlstore.Call
	for i := range total {
		end := now.Add(time.Duration(i) * time.Second)
		if i%100 == 7 {
			end = time.Time{}
		}
		calls = append(calls, call(t, now, store.Put(store.Record{Kind: "ledger", ID: fmt.Sprintf("a%d.%d", i%97, i), NotAfter: end})))
	}
	g.run(t, "COMMIT", calls...)
	purge := func(before, want int) {
		t.Helper()
		removed := 0
		for {
			n, err := s.Purge(t.Context(), "ledger", now.Add(time.Duration(before)*time.Second), store.MaxPage)
			require.NoError(t, err)
			if removed += n; n == 0 {
				break
			}
		}
		require.Equal(t, want, removed)
	}
	purge(0, 0)
	purge(10_000, 9900)
	move := func(i, version int, end time.Time) {
		c := call(t, now, store.Put(store.Record{Kind: "ledger", ID: fmt.Sprintf("a%d.%d", i%97, i), Version: uint64(version), NotAfter: end}))
		g.run(t, "COMMIT", c)
		require.True(t, c.Outcome.Applied())
	}
	move(19_000, 1, now)
	move(10_000, 1, time.Time{})
	move(7, 1, now)
	purge(10_001, 2)
	purge(total, 9900-2)
	all, indexed := logged(t, db)
	require.Equal(t, []int{200, 200}, []int{all, indexed}, "those that are never over, but one, and one more")
	var parts int
	require.NoError(t, db.QueryRow("SELECT count(*) FROM behest_log_parts").Scan(&parts))
	require.Zero(t, parts, "nothing is left to purge")
}

// What is out of shape is an error, and nothing is written.
func TestLedgerOutOfShape(t *testing.T) {
	db, _ := sqliteNodes(t)
	s := newStore(t, db, sqlstore.SQLite)
	_, err := db.Exec("DELETE FROM behest_log_sorted")
	require.NoError(t, err)
	_, err = s.Apply(t.Context(), now, []store.Op{entry("a.1", 0)})
	require.ErrorContains(t, err, "behest_log_sorted")
	all, _ := logged(t, db)
	require.Zero(t, all)
}

// Numbers that damage has moved far away keep nobody.
func TestLedgerFarNumbers(t *testing.T) {
	for _, damage := range []string{
		"UPDATE behest_log SET n = 1 << 62 WHERE id = 'a.3'",
		"UPDATE behest_log_sorted SET n = -(1 << 62)",
		"UPDATE behest_log SET n = 1 << 40",
	} {
		db, _ := sqliteNodes(t)
		g, s := newGroups(t, db), newStore(t, db, sqlstore.SQLite)
		g.run(t, "COMMIT", call(t, now, entry("a.1", 0)), call(t, now, entry("a.3", 0)))
		if strings.HasSuffix(damage, "<< 40") {
			_, err := db.Exec("DELETE FROM behest_log WHERE id = 'a.1'")
			require.NoError(t, err)
		}
		_, err := db.Exec(damage)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := s.Apply(ctx, now, []store.Op{entry("a.2", 0)})
		require.NoError(t, err)
		require.True(t, out.Applied())
		_, err = s.Purge(ctx, "ledger", now.Add(time.Hour), store.MaxPage)
		require.NoError(t, err)
		require.Empty(t, ledger(t, s, store.Query{}))
	}
}

// Somebody may remove entries by hand, whether they are in the index or not.
func TestLedgerRemovedByHand(t *testing.T) {
	here, other := sqliteNodes(t)
	g, fresh := newGroups(t, here), newGroups(t, other)
	var calls []*sqlstore.Call
	for i := range 10 {
		calls = append(calls, call(t, now, entry(fmt.Sprint("a.", i), 0)))
	}
	for i, unsorted := range []int{99, 0} {
		g.SetUnsorted(unsorted)
		g.run(t, "COMMIT", calls...)
		_, err := other.Exec("DELETE FROM behest_log WHERE id <> 'a.4'")
		require.NoError(t, err)
		for _, by := range []*groups{fresh, g} { // who knew the others, and who did not
			by.run(t, "COMMIT", call(t, now, store.Check("ledger", "a.3", 0)), call(t, now, entry("b.1", 0)), call(t, now, store.Check("ledger", "a.4", 1)))
			require.Equal(t, []string{"a.4", "b.1"}, ledger(t, newStore(t, other, sqlstore.SQLite), store.Query{}), "%d", i)
			by.run(t, "COMMIT", call(t, now, store.Delete("ledger", "b.1", 1)))
		}
		_, err = other.Exec("DELETE FROM behest_log")
		require.NoError(t, err)
		all, indexed := logged(t, here)
		require.Equal(t, []int{0, 0}, []int{all, indexed})
		sound(t, here)
	}
}

// A number that becomes free before its row was in the index, by hand, may be given to another: who knew the first learns of it.
func TestLedgerNumberGivenTwice(t *testing.T) {
	here, other := sqliteNodes(t)
	g, fresh := newGroups(t, here), newGroups(t, other)
	g.run(t, "COMMIT", call(t, now, entry("a.1", 0)), call(t, now, entry("a.2", 0)))
	g.run(t, "COMMIT", call(t, now, store.Check("t", "a.1", 0)))
	_, err := other.Exec("DELETE FROM behest_log WHERE id = 'a.2'")
	require.NoError(t, err)
	fresh.run(t, "COMMIT", call(t, now, entry("b.1", 0)))
	taken := call(t, now, entry("b.1", 0))
	g.run(t, "COMMIT", taken)
	require.Equal(t, store.Conflict, taken.Outcome.Reason)
	g.SetUnsorted(0)
	g.run(t, "COMMIT", call(t, now, entry("a.3", 0)))
	require.Equal(t, []string{"a.1", "a.3", "b.1"}, ledger(t, newStore(t, other, sqlstore.SQLite), store.Query{}))
	sound(t, here)
}

// That an ID is not there twice is looked at before it is written; if somebody has written one by hand, it is said.
func TestLedgerTwice(t *testing.T) {
	db, _ := sqliteNodes(t)
	g := newGroups(t, db)
	g.SetUnsorted(0)
	g.run(t, "COMMIT", call(t, now, entry("a.1", 0)), call(t, now, entry("a.2", 0)))
	_, err := db.Exec("INSERT INTO behest_log (n, id, version, owner, app, left_uses, data) SELECT n + 9, id, version, owner, app, left_uses, data FROM behest_log")
	require.NoError(t, err)
	_, err = newStore(t, db, sqlstore.SQLite).Apply(t.Context(), now, []store.Op{entry("b.1", 0)})
	require.ErrorContains(t, err, `two entries in behest_log have the id "a.1"`)
}

// Whatever comes in whatever order, of few and of many, a List is what it would be of a sorted slice.
func TestLedgerLists(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 40
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	here, other := sqliteNodes(t)
	for _, db := range []*sql.DB{here, other} {
		db.SetMaxOpenConns(1)
		_, err := db.Exec("PRAGMA synchronous = OFF")
		require.NoError(t, err)
		db.SetMaxOpenConns(4)
	}
	both := []*groups{newGroups(t, here), newGroups(t, other)}
	s := newStore(t, other, sqlstore.SQLite)
	model := make(map[string]string) // IDs and their apps
	clock := 0
	anyID := func() string {
		switch r.IntN(12) {
		case 0:
			return fmt.Sprint(r.IntN(20)) // an aggregate
		case 1:
			return fmt.Sprintf("%d.%04d", r.IntN(4), r.IntN(9999)) // anywhere
		}
		clock++
		return fmt.Sprintf("%d.%04d", r.IntN(1+r.IntN(6)), max(0, clock-r.IntN(1+r.IntN(5)))) // about in order
	}
	apps := []string{"", "bookbot", "probe"}
	for round := range rounds {
		g := both[r.IntN(2)]
		g.SetUnsorted([]int{0, 10, 100, 300}[r.IntN(4)])
		var calls []*sqlstore.Call
		after := maps.Clone(model)
		for range 1 + r.IntN(60) {
			id, app := anyID(), apps[r.IntN(3)]
			if _, there := after[id]; there {
				continue
			}
			after[id] = app
			calls = append(calls, call(t, now, store.Put(store.Record{Kind: "ledger", ID: id, App: app, NotAfter: now.Add(time.Duration(r.IntN(rounds)) * time.Second)})))
		}
		for id := range after {
			if r.IntN(50) == 0 {
				calls = append(calls, call(t, now, store.Delete("ledger", id, store.AnyVersion)))
				delete(after, id)
			}
		}
		if len(calls) > 0 {
			if end := []string{"COMMIT", "COMMIT", "COMMIT", "ROLLBACK"}[r.IntN(4)]; end == "COMMIT" {
				g.run(t, end, calls...)
				model = after
				for _, c := range calls {
					require.True(t, c.Outcome.Applied(), "seed %d, round %d: %v", seed, round, c.Outcome)
				}
			} else {
				g.run(t, end, calls...)
				g.Forget()
			}
		}
		ids := slices.Sorted(maps.Keys(model))
		for range 5 {
			q := store.Query{App: apps[r.IntN(3)], Limit: 1 + r.IntN(60), Reverse: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				q.Prefix = []string{"1", "1.", "2.0", "3.05", "9", "\xff"}[r.IntN(6)]
			}
			if r.IntN(2) == 0 && len(ids) > 0 {
				q.After = ids[r.IntN(len(ids))] + []string{"", "0"}[r.IntN(2)]
			}
			var want []string
			for _, id := range ids {
				if strings.HasPrefix(id, q.Prefix) && (q.App == "" || model[id] == q.App) && (q.After == "" || !q.Reverse && id > q.After || q.Reverse && id < q.After) {
					want = append(want, id)
				}
			}
			if q.Reverse {
				slices.Reverse(want)
			}
			require.Equal(t, want[:min(len(want), q.Limit)], ledger(t, s, q), "seed %d, round %d: %+v", seed, round, q)
		}
		if len(ids) > 0 {
			some := []string{ids[r.IntN(len(ids))], "nobody", ids[r.IntN(len(ids))] + ".", ids[0], ids[len(ids)-1]}
			got, err := s.Get(t.Context(), "ledger", some...)
			require.NoError(t, err)
			var found []string
			for _, r := range got {
				found = append(found, r.ID)
			}
			require.Equal(t, slices.DeleteFunc(some, func(id string) bool { return !slices.Contains(ids, id) }), found)
		}
		if round%20 == 19 {
			sound(t, other)
		}
	}
	for {
		n, err := s.Purge(t.Context(), "ledger", now.Add(time.Hour), store.MaxPage)
		require.NoError(t, err)
		sound(t, other)
		if n == 0 {
			break
		}
	}
	var runs int
	require.NoError(t, other.QueryRow("SELECT count(*) FROM behest_log_runs").Scan(&runs))
	require.Zero(t, runs)
}
