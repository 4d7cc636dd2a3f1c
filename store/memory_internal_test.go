package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

var (
	ctx = context.Background()
	now = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
)

func apply(t testing.TB, m *Memory, ops ...Op) {
	t.Helper()
	out, err := m.Apply(ctx, now, ops)
	require.NoError(t, err)
	require.True(t, out.Applied(), "%+v", out)
}

// holds counts what each hold of a lock looks at, and requires that nobody but one shard has to wait meanwhile.
type holds struct{ number, longest, total int }

func watch(t *testing.T, m *Memory) *holds {
	h := new(holds)
	m.step = func(records int) {
		h.number++
		h.total += records
		h.longest = max(h.longest, records)
		if h.number%32 != 0 {
			return
		}
		locked := 0
		for i := range m.shards {
			if m.shards[i].mu.TryLock() {
				m.shards[i].mu.Unlock()
			} else {
				locked++
			}
		}
		require.LessOrEqual(t, locked, 1, "shards that are locked at once")
		require.True(t, m.dues.mu.TryLock(), "the index of due records is locked between steps")
		m.dues.mu.Unlock()
	}
	return h
}

// Of 200,000 tokens that are over at the same moment, no hold of a lock looks at more than maxStep, and no call at more than it removes.
func TestPurgeGoesInSteps(t *testing.T) {
	const total, inOne = 200_000, 50_000
	m := NewMemory()
	var ops []Op
	for i := range total {
		id, batch := fmt.Sprintf("a%d.%d", i/4, i), 4
		if i < inOne {
			id, batch = fmt.Sprintf("large.%d", i*7919%inOne), 20
		}
		if ops = append(ops, Put(Record{Kind: "token", ID: id, App: "bookbot", NotAfter: now})); len(ops) == batch {
			apply(t, m, ops...)
			ops = ops[:0]
		}
	}
	require.Empty(t, ops)
	apply(t, m, Put(Record{Kind: "token", ID: "large.alive", NotAfter: now.Add(time.Hour)}))
	h := watch(t, m)
	left, calls := total, 0
	for left > 0 {
		before := *h
		removed, err := m.Purge(ctx, "token", now.Add(time.Minute), MaxPage)
		require.NoError(t, err)
		require.Equal(t, MaxPage, removed)
		require.LessOrEqual(t, h.total-before.total, MaxPage, "records looked at in one call")
		require.LessOrEqual(t, h.number-before.number, (2+MaxPage/maxStep)*shardCount, "holds in one call")
		left -= removed
		calls++
	}
	require.LessOrEqual(t, h.longest, maxStep, "records looked at in one hold of a lock")
	t.Logf("%d records in %d calls, %d holds of a lock, at most %d records each", total, calls, h.number, h.longest)
	got, err := m.List(ctx, Query{Kind: "token"})
	require.NoError(t, err)
	require.Len(t, got, 1)
	verify(t, m)
}

// A List that finds nothing among 50,000 records looks at them in steps, and at none by App or aggregate.
func TestListGoesInSteps(t *testing.T) {
	const total = 50_000
	m := NewMemory()
	for i := range total {
		apply(t, m, Put(Record{Kind: "grant", ID: fmt.Sprintf("a%d.%d", i%1000, i), App: "bookbot"}))
	}
	h := watch(t, m)
	for _, c := range []struct {
		q    Query
		most int
	}{
		{Query{Owner: "nobody"}, total},
		{Query{DueBy: now, Reverse: true}, total},
		{Query{App: "other"}, 0},
		{Query{Prefix: "a7.", Owner: "nobody"}, total / 1000},
		{Query{Prefix: "b"}, 0},
		{Query{Limit: 1}, 3 * shardCount},
		{Query{Limit: MaxPage}, 4 * MaxPage},
		{Query{Limit: MaxPage, Reverse: true, After: "a5"}, 4 * MaxPage},
	} {
		*h = holds{}
		c.q.Kind = "grant"
		got, err := m.List(ctx, c.q)
		require.NoError(t, err)
		require.Len(t, got, c.q.Limit)
		require.LessOrEqual(t, h.longest, maxStep, "%+v", c.q)
		require.LessOrEqual(t, h.total, c.most, "%+v", c.q)
	}
}

// A Claim looks at what it returns and at nothing else, whatever is due later or belongs to others.
func TestClaimLooksAtWhatItTakes(t *testing.T) {
	m := NewMemory()
	for i := range 20_000 {
		r := Record{Kind: "delivery", ID: fmt.Sprintf("a%d.1", i), App: "dead", Due: now.Add(-time.Hour)}
		if i%2 == 0 {
			r.App, r.Due = fmt.Sprint("app", i%500), now.Add(time.Duration(i)*time.Millisecond)
		}
		apply(t, m, Put(r))
	}
	h := watch(t, m)
	for _, c := range []struct {
		q    Query
		want int
	}{
		{Query{App: "app2"}, 0}, {Query{App: "nobody"}, 0}, {Query{NotApps: []string{"dead"}}, 1}, {Query{NotApps: []string{"dead"}}, 0},
		{Query{App: "dead", NotApps: []string{"dead"}}, 0}, {Query{App: "dead", Limit: 7}, 7}, {Query{Limit: MaxPage}, MaxPage},
	} {
		*h = holds{}
		c.q.Kind, c.q.DueBy = "delivery", now
		got, err := m.Claim(ctx, c.q, now.Add(time.Minute))
		require.NoError(t, err)
		require.Len(t, got, c.want)
		require.Equal(t, c.want, h.total, "%+v", c.q)
		require.LessOrEqual(t, h.longest, maxStep)
	}
	verify(t, m)
}

// A call that takes several steps stops between two of them when its context is over, and says what it has done.
func TestStepsEndWithTheContext(t *testing.T) {
	m := NewMemory()
	for i := range 10_000 {
		apply(t, m, Put(Record{Kind: "t", ID: fmt.Sprintf("a%d.1", i), Due: now, NotAfter: now}))
	}
	var over context.Context
	steps := 0
	begin := func() {
		var cancel context.CancelFunc
		over, cancel = context.WithCancel(ctx)
		steps = 0
		m.step = func(int) {
			if steps++; steps == 3 {
				cancel()
			}
		}
	}
	begin()
	removed, err := m.Purge(over, "t", now.Add(time.Hour), MaxPage)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, steps)
	require.Positive(t, removed)
	require.Less(t, removed, MaxPage)
	begin()
	_, err = m.List(over, Query{Kind: "t"})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, steps)
	begin()
	_, err = m.Claim(over, Query{Kind: "t", Prefix: "a", DueBy: now}, now.Add(time.Minute))
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, steps)

	m.step = nil
	left, due := 0, 0
	for after := ""; ; {
		page, err := m.List(ctx, Query{Kind: "t", After: after, Limit: MaxPage})
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		left += len(page)
		for _, r := range page {
			if r.Due.Equal(now) && r.Version == 1 {
				due++
			}
		}
		after = page[len(page)-1].ID
	}
	require.Equal(t, 10_000-removed, left)
	require.Equal(t, left, due, "a Claim that failed has leased nothing")
	verify(t, m)
}

// What is empty is gone: aggregates, runs, indexes.
func TestNothingIsLeftOfNothing(t *testing.T) {
	m := NewMemory()
	for i := range 3000 {
		name := fmt.Sprint("a", i%400)
		apply(t, m, Put(Record{Kind: "account", ID: name, Version: AnyVersion}), Put(Record{
			Kind: fmt.Sprint("t", i%3), ID: fmt.Sprintf("%s.%d", name, i), App: fmt.Sprint("app", i%5), Due: now.Add(time.Duration(i)), NotAfter: now.Add(time.Duration(i % 7)),
		}))
	}
	verify(t, m)
	for i := range 3000 {
		name := fmt.Sprint("a", i%400)
		ops := []Op{Delete(fmt.Sprint("t", i%3), fmt.Sprintf("%s.%d", name, i), 1), Delete("account", name, AnyVersion)}
		if i%3 == 0 {
			ops = ops[1:]
		}
		apply(t, m, ops...)
	}
	verify(t, m)
	for removed := -1; removed != 0; {
		var err error
		removed, err = m.Purge(ctx, "t0", now.Add(time.Hour), 100)
		require.NoError(t, err)
	}
	for i := range m.shards {
		require.Empty(t, m.shards[i].aggregates)
		require.Empty(t, m.shards[i].tables)
	}
	require.Empty(t, m.dues.kinds)
}

// Of records that go in the order in which they come, one is in the index of expiries. Whatever the order, a Purge takes
// those whose time has come, and no others.
func TestPurgeTakesWhatIsOver(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	orders := map[string]func(i int) int{
		"as they came": func(i int) int { return i }, "at once": func(int) int { return 0 }, "last first": func(i int) int { return -i },
		"any": func(int) int { return rnd.IntN(1000) }, "nearly as they came": func(i int) int { return i + rnd.IntN(3) },
	}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			m := NewMemory()
			want := make(map[string]time.Time)
			for i := range 1000 {
				r := Record{Kind: "ledger", ID: fmt.Sprintf("a.%04d", i), NotAfter: now.Add(time.Duration(order(i)) * time.Second)}
				if name == "any" && i%10 == 0 {
					r.NotAfter = time.Time{}
				}
				apply(t, m, Put(r))
				want[r.ID] = r.NotAfter
			}
			if name == "as they came" || name == "at once" {
				require.Len(t, all(&m.shardOf("a").tables["ledger"].expiry), 1)
			}
			verify(t, m)
			for _, at := range []int{-500, 1, 250, 777, 2000} {
				before := now.Add(time.Duration(at) * time.Second)
				maps.DeleteFunc(want, func(_ string, end time.Time) bool { return !end.IsZero() && end.Before(before) })
				for removed := -1; removed != 0; {
					var err error
					removed, err = m.Purge(ctx, "ledger", before, 100)
					require.NoError(t, err)
				}
				got, err := m.List(ctx, Query{Kind: "ledger", Limit: MaxPage})
				require.NoError(t, err)
				require.Len(t, got, len(want))
				for _, r := range got {
					require.Contains(t, want, r.ID)
				}
				verify(t, m)
			}
		})
	}
}

// The zero Memory works, and an Apply of everything at once leaves the indexes right.
func TestIndexesHold(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var m Memory
	at := func() time.Time {
		if rnd.IntN(3) == 0 {
			return time.Time{}
		}
		return now.Add(time.Duration(rnd.IntN(50)) * time.Second)
	}
	for i := range 12_000 {
		name := []string{"a", "b", "a!", "large"}[min(rnd.IntN(8), 3)]
		var ops []Op
		for range 1 + rnd.IntN(6) {
			id := fmt.Sprintf("%s.%d", name, rnd.IntN(2000))
			if rnd.IntN(50) == 0 {
				id = name
			}
			r := Record{Kind: []string{"t", "u"}[rnd.IntN(2)], ID: id, Version: AnyVersion, App: []string{"", "x", "y"}[rnd.IntN(3)], Due: at(), NotAfter: at(), Left: 9}
			if rnd.IntN(3) == 0 {
				ops = append(ops, Delete(r.Kind, r.ID, AnyVersion))
			} else {
				ops = append(ops, Put(r))
			}
		}
		if Validate(ops) != nil { // one record twice
			continue
		}
		apply(t, &m, ops...)
		switch rnd.IntN(100) {
		case 0:
			_, err := m.Claim(ctx, Query{Kind: "t", DueBy: now.Add(9 * time.Second), Limit: 20}, now.Add(time.Minute))
			require.NoError(t, err)
		case 1:
			_, err := m.Purge(ctx, "u", now.Add(5*time.Second), 50)
			require.NoError(t, err)
		}
		if i%3000 == 0 {
			verify(t, &m)
		}
	}
	verify(t, &m)
}

// What records share stays what it was for one of them, whatever becomes of the others.
func TestSharedRest(t *testing.T) {
	m := NewMemory()
	want := make(map[string]Record)
	put := func(id, owner, app, data string) {
		r := Record{Kind: "ledger", ID: id, Version: AnyVersion, Owner: owner, App: app, NotAfter: now, Data: []byte(data)}
		apply(t, m, Put(r))
		r.Version = want[id].Version + 1
		want[id] = r
	}
	put("a.1", "zhang-san", "bookbot", "used")
	put("a.2", "zhang-san", "bookbot", "used")
	put("a.3", "zhang-sanb", "ookbot", "used") // the same bytes in other columns
	put("a.4", "zhang-sanb", "ookbotu", "sed")
	put("a.5", "zhang-sanb", "ookbotu", "sed")
	put("a.45", "zhang-sanb", "ookbotu", "sed") // not the last one
	put("a.6", strings.Repeat("o", MaxKey), strings.Repeat("p", MaxKey), strings.Repeat("q", largeData))
	put("a.7", strings.Repeat("o", MaxKey), strings.Repeat("p", MaxKey), strings.Repeat("q", largeData))
	for _, pair := range [][2]string{{"a.1", "a.2"}, {"a.4", "a.5"}, {"a.6", "a.7"}} {
		a := m.shardOf("a").aggregates["a"]
		require.Same(t, unsafe.StringData(a.find("ledger", pair[0], true).rest), unsafe.StringData(a.find("ledger", pair[1], true).rest), "%s", pair)
	}
	put("a.2", "li-si", "", "replaced")
	apply(t, m, Delete("ledger", "a.4", 1))
	delete(want, "a.4")
	verify(t, m)
	got, err := m.List(ctx, Query{Kind: "ledger"})
	require.NoError(t, err)
	require.Len(t, got, len(want))
	for _, r := range got {
		require.Equal(t, want[r.ID], r)
	}
}

// verify holds every index against the records themselves.
func verify(t *testing.T, m *Memory) {
	t.Helper()
	due := make(map[string][]*record)
	for i := range m.shards {
		s := &m.shards[i]
		runs := make(map[string]int)
		for name, a := range s.aggregates {
			require.Same(t, s, m.shardOf(name))
			require.NotEmpty(t, a)
			for _, o := range a {
				require.Same(t, s.tables[o.kind], o.run.table)
				require.NotEmpty(t, all(&o.run.recs))
				runs[o.kind]++
				for _, rec := range all(&o.run.recs) {
					if Aggregate(rec.id()) != name || o.dotted != (rec.id() != name) {
						t.Fatalf("%q is in aggregate %q", rec.id(), name)
					}
				}
			}
		}
		for kind, table := range s.tables {
			require.Equal(t, kind, table.kind)
			require.Len(t, all(&table.runs), runs[kind])
			var recs, expiring []*record
			apps := make(map[string][]*run)
			for _, r := range all(&table.runs) {
				counts := make(map[string]int)
				var prev *record
				for _, rec := range all(&r.recs) {
					recs = append(recs, rec)
					if rec.notAfter != 0 && (prev == nil || prev.notAfter == 0 || rec.notAfter < prev.notAfter) {
						expiring = append(expiring, rec)
					}
					prev = rec
					if rec.due != 0 {
						due[kind] = append(due[kind], rec)
					}
					if rec.app() != "" {
						counts[rec.app()]++
					}
				}
				for app := range counts {
					apps[app] = append(apps[app], r)
				}
				if r.apps != nil {
					for _, tal := range all(r.apps) {
						require.Equal(t, counts[tal.app.app], tal.n)
						delete(counts, tal.app.app)
					}
				}
				require.Empty(t, counts)
			}
			require.True(t, slices.IsSortedFunc(recs, func(a, b *record) int { return strings.Compare(a.id(), b.id()) }))
			slices.SortStableFunc(expiring, func(a, b *record) int { return int(a.notAfter - b.notAfter) }) // they are by ID
			require.True(t, slices.Equal(expiring, all(&table.expiry)))
			require.Len(t, table.apps, len(apps))
			for app, in := range table.apps {
				require.Equal(t, apps[app], all(&in.runs))
			}
		}
	}
	require.Len(t, m.dues.kinds, len(due))
	for kind, g := range m.dues.kinds {
		var indexed []*record
		order := all(&g.order)
		require.Len(t, order, len(g.apps))
		require.True(t, slices.IsSortedFunc(order, func(a, b *queue) int { return int(a.first().due - b.first().due) }))
		for app, q := range g.apps {
			recs := all(&q.recs)
			require.True(t, slices.IsSortedFunc(recs, func(a, b *record) int { return int(a.due - b.due) }))
			require.False(t, slices.ContainsFunc(recs, func(r *record) bool { return r.app() != app }))
			indexed = append(indexed, recs...)
		}
		slices.SortFunc(indexed, func(a, b *record) int { return strings.Compare(a.id(), b.id()) })
		slices.SortFunc(due[kind], func(a, b *record) int { return strings.Compare(a.id(), b.id()) })
		require.True(t, slices.Equal(due[kind], indexed))
	}
}

func all[T any](l *list[T]) (out []T) {
	for at := (spot{}); ; at = l.next(at) {
		v, ok := l.at(at)
		if !ok {
			return out
		}
		out = append(out, v)
	}
}

func TestList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var l list[int]
	var want []int
	find := func(v int) spot { return l.search(func(o int) bool { return o >= v }) }
	for i, grow := 0, 7; i < 30_000; i++ {
		if i%5000 == 4999 {
			grow = 10 - grow // then shrink, then grow
		}
		v := rnd.IntN(100_000)
		if rnd.IntN(4) == 0 {
			v = 100_000 + i // at the end
		}
		if rnd.IntN(10) < grow {
			at, found := slices.BinarySearch(want, v)
			if found {
				continue
			}
			l.insert(find(v), v)
			want = slices.Insert(want, at, v)
		} else if len(want) > 0 {
			at := rnd.IntN(len(want))
			if rnd.IntN(3) == 0 {
				at = 0
			}
			l.remove(find(want[at]))
			want = slices.Delete(want, at, at+1)
		}
		require.Equal(t, len(want) == 0, l.empty())
		if i%1000 == 0 {
			require.True(t, slices.Equal(want, all(&l)), "step %d", i)
			at := find(1 << 40)
			for j := range slices.Backward(want) {
				at = l.prev(at)
				v, ok := l.at(at)
				require.True(t, ok)
				require.Equal(t, want[j], v)
			}
			_, ok := l.at(l.prev(at))
			require.False(t, ok && len(want) > 0)
			for _, c := range append(l.rest(), l.first) {
				require.LessOrEqual(t, len(c), maxChunk)
			}
		}
	}
	for len(want) > 0 {
		l.remove(spot{})
		want = want[1:]
	}
	require.True(t, l.empty())
	require.Nil(t, l.rest())
}
