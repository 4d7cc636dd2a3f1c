package store_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/behest-go/behest/store"
)

var (
	ctx = context.Background()
	now = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
)

func must(tb testing.TB, m *store.Memory, ops ...store.Op) {
	tb.Helper()
	out, err := m.Apply(ctx, now, ops)
	if err != nil || !out.Applied() {
		tb.Fatal(out, err)
	}
}

// accounts fills m as a server would: an account, an app, a grant and a token each.
func accounts(tb testing.TB, m *store.Memory, k int) []string {
	names := make([]string, k)
	for i := range names {
		name := fmt.Sprintf("k3qz7m2v%08x", i)
		names[i] = name
		must(tb, m,
			store.Put(store.Record{Kind: "account", ID: name}),
			store.Put(store.Record{Kind: "here", ID: name + ".bookbot.group:42", App: "bookbot"}),
			store.Put(store.Record{Kind: "ledger", ID: name + ".0", Owner: name, App: "bookbot", Data: make([]byte, 120)}),
			store.Put(store.Record{Kind: "grant", ID: name + ".g5f0c1a2", Owner: name, App: "bookbot", Data: make([]byte, 200)}),
			store.Put(store.Record{Kind: "token", ID: name + ".g5f0c1a2", Left: 1 << 50, NotAfter: now.Add(time.Hour), Data: make([]byte, 32)}),
		)
	}
	return names
}

// use is what one use of a token is: three checks, a spend, a ledger entry.
type use struct {
	account, here, grant string
	entry                []byte
}

func newUse(name string) use {
	return use{name, name + ".bookbot.group:42", name + ".g5f0c1a2", append(append(make([]byte, 0, 64), name...), '.')}
}

var entryData = make([]byte, 120)

// at fills in the operations. The entry's ID is the caller's one allocation.
func (u *use) at(i int64, ops *[5]store.Op) []store.Op {
	ops[0] = store.Check("account", u.account, 1)
	ops[1] = store.Check("here", u.here, 1)
	ops[2] = store.Check("grant", u.grant, 1)
	ops[3] = store.Spend("token", u.grant, 1, nil)
	ops[4] = store.Put(store.Record{
		Kind: "ledger", ID: string(strconv.AppendInt(u.entry, i+1<<40, 16)), Owner: u.account, App: "bookbot", NotAfter: now.Add(time.Duration(i) * time.Microsecond), Data: entryData,
	})
	return ops[:]
}

func BenchmarkUse(b *testing.B) {
	for _, k := range []int{1, 100, 100_000} {
		b.Run(fmt.Sprint("accounts=", k), func(b *testing.B) {
			m := store.NewMemory()
			var uses []use
			var ops [5]store.Op
			for _, name := range accounts(b, m, k) {
				uses = append(uses, newUse(name))
			}
			b.ReportAllocs()
			for i := int64(0); b.Loop(); i++ {
				out, err := m.Apply(ctx, now, uses[i*7919%int64(k)].at(i, &ops))
				if err != nil || !out.Applied() {
					b.Fatal(out, err)
				}
				if i%50_000 == 49_999 { // a ledger that grows for ever would measure the garbage collector
					b.StopTimer()
					for more := store.MaxPage; more == store.MaxPage; {
						more, _ = m.Purge(ctx, "ledger", now.AddDate(1, 0, 0), store.MaxPage)
					}
					b.StartTimer()
				}
			}
		})
	}
}

func BenchmarkUseParallel(b *testing.B) {
	m := store.NewMemory()
	names := accounts(b, m, 1000)
	var worker, entry atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var uses []use
		var ops [5]store.Op
		base := worker.Add(1) * 16
		for i := range 16 {
			uses = append(uses, newUse(names[(int(base)+i)%len(names)]))
		}
		for i := 0; pb.Next(); i++ {
			out, err := m.Apply(ctx, now, uses[i%16].at(entry.Add(1), &ops))
			if err != nil || !out.Applied() {
				b.Error(out, err)
				return
			}
		}
	})
}

func BenchmarkUseRefused(b *testing.B) {
	m := store.NewMemory()
	u := newUse(accounts(b, m, 100)[50])
	var ops [5]store.Op
	b.ReportAllocs()
	for b.Loop() {
		u.at(1, &ops)[3].N = 1 << 60
		if out, err := m.Apply(ctx, now, ops[:]); err != nil || out.Reason != store.Exhausted {
			b.Fatal(out, err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	m := store.NewMemory()
	names := accounts(b, m, 100_000)
	for i := range names {
		names[i] += ".g5f0c1a2"
	}
	for _, k := range []int{100, 100_000} {
		b.Run(fmt.Sprint("accounts=", k), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if got, err := m.Get(ctx, "token", names[i*7919%k]); err != nil || len(got) != 1 {
					b.Fatal(got, err)
				}
			}
		})
	}
}

// BenchmarkClaimIdle asks for work where there is a lot, but all of it later or of other apps.
func BenchmarkClaimIdle(b *testing.B) {
	m := store.NewMemory()
	for i := range 100_000 {
		app, due := fmt.Sprint("app", i%1000), now.Add(time.Hour)
		if i%2 == 0 {
			app, due = "dead", now.Add(-time.Hour)
		}
		must(b, m, store.Put(store.Record{Kind: "delivery", ID: fmt.Sprintf("a%d.1", i), App: app, Due: due}))
	}
	for name, q := range map[string]store.Query{"app": {App: "app7"}, "but-one": {NotApps: []string{"dead"}}, "unknown": {App: "nobody"}} {
		q.Kind, q.DueBy = "delivery", now
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, err := m.Claim(ctx, q, now.Add(time.Minute)); err != nil || len(got) > 0 {
					b.Fatal(got, err)
				}
			}
		})
	}
}

func BenchmarkClaim(b *testing.B) {
	m := store.NewMemory()
	for i := range 100_000 {
		must(b, m, store.Put(store.Record{Kind: "delivery", ID: fmt.Sprintf("a%d.1", i), App: fmt.Sprint("app", i%100), Due: now.Add(time.Duration(i))}))
	}
	at := now
	b.ReportAllocs()
	for b.Loop() {
		at = at.Add(time.Microsecond)
		if got, err := m.Claim(ctx, store.Query{Kind: "delivery", DueBy: at.Add(time.Hour), Limit: 20}, at.Add(2*time.Minute)); err != nil || len(got) != 20 {
			b.Fatal(len(got), err)
		}
	}
}

// BenchmarkPurge reports the time for each record removed, in calls of 1000.
func BenchmarkPurge(b *testing.B) {
	m := store.NewMemory()
	for i := range b.N {
		must(b, m, store.Put(store.Record{Kind: "token", ID: fmt.Sprintf("k%06d.%d", i/5, i), App: "bookbot", NotAfter: now.Add(time.Duration(i%60) * time.Second)}))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; {
		k, err := m.Purge(ctx, "token", now.Add(time.Hour), store.MaxPage)
		if err != nil || k == 0 {
			b.Fatal(k, err)
		}
		left -= k
	}
}

func BenchmarkPurgeIdle(b *testing.B) {
	m := store.NewMemory()
	accounts(b, m, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		if k, err := m.Purge(ctx, "token", now, store.MaxPage); err != nil || k > 0 {
			b.Fatal(k, err)
		}
	}
}

func BenchmarkList(b *testing.B) {
	m := store.NewMemory()
	names := accounts(b, m, 100_000)
	must(b, m, store.Put(store.Record{Kind: "grant", ID: names[777] + ".rare", App: "rare"}))
	for name, q := range map[string]store.Query{
		"account": {Prefix: names[777] + "."}, "page": {After: names[500]}, "app": {App: "bookbot"}, "rare-app": {App: "rare"}, "owner": {Owner: names[7]}, "reverse": {Reverse: true},
	} {
		q.Kind = "grant"
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, err := m.List(ctx, q); err != nil || len(got) == 0 {
					b.Fatal(got, err)
				}
			}
		})
	}
}

// BenchmarkFootprint reports the memory that a record takes, its own bytes included.
func BenchmarkFootprint(b *testing.B) {
	heap := func() float64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return float64(s.HeapAlloc)
	}
	for b.Loop() {
		m := store.NewMemory()
		before := heap()
		const k = 20_000
		names := accounts(b, m, k)
		filled := heap()
		for i := range int64(200_000) {
			must(b, m, store.Put(store.Record{Kind: "ledger", ID: string(strconv.AppendInt([]byte(names[i%k]+"."), i+1<<40, 16)), Owner: names[i%k], App: "bookbot", NotAfter: now.Add(time.Duration(i)), Data: entryData}))
		}
		b.ReportMetric((filled-before)/k, "B/account")
		b.ReportMetric((heap()-filled)/200_000, "B/entry")
		runtime.KeepAlive(m)
	}
}
