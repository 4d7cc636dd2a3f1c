package store_test

import (
	"context"
	"fmt"
	"time"

	"github.com/behest-go/behest/store"
)

// One use of a token is one Apply: still not revoked, one use less, and an entry in the ledger; or nothing of it.
func Example() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	mem := store.NewMemory()
	_, err := mem.Apply(ctx, now, []store.Op{
		store.Put(store.Record{Kind: "token", ID: "a1.t7", Left: 2, NotAfter: now.Add(time.Minute)}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := range 3 {
		out, err := mem.Apply(ctx, now, []store.Op{
			store.Check("revocation", "a1.all", 0),
			store.Spend("token", "a1.t7", 1, nil),
			store.Put(store.Record{Kind: "ledger", ID: fmt.Sprint("a1.l", i), Data: []byte("posted a message")}),
		})
		fmt.Println(out.Applied(), out.Reason, out.Left, err)
	}
	entries, err := mem.List(ctx, store.Query{Kind: "ledger", Prefix: "a1."})
	fmt.Println(len(entries), err)
	// Output:
	// true applied 1 <nil>
	// true applied 0 <nil>
	// false exhausted 0 <nil>
	// 2 <nil>
}

// A window of a rate limit is created by the first who spends from it.
func ExampleSpend() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	mem := store.NewMemory()
	for range 3 {
		minute := now.Truncate(time.Minute)
		window := store.Record{Left: 2, NotAfter: minute.Add(time.Minute)}
		out, err := mem.Apply(ctx, now, []store.Op{store.Spend("window", "a1."+minute.Format("1504"), 1, &window)})
		fmt.Println(out.Reason, out.Left, err)
	}
	// Output:
	// applied 1 <nil>
	// applied 0 <nil>
	// exhausted 0 <nil>
}

// Who writes what he read says which version that was. The other one is told, and reads again.
func ExamplePut() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	mem := store.NewMemory()
	put := func(r store.Record) {
		out, err := mem.Apply(ctx, now, []store.Op{store.Put(r)})
		fmt.Println(out.Reason, err)
	}
	put(store.Record{Kind: "consent", ID: "a1.bookbot", Data: []byte("once")})
	read, err := mem.Get(ctx, "consent", "a1.bookbot")
	if err != nil {
		fmt.Println(err)
		return
	}
	mine, yours := read[0], read[0]
	mine.Data, yours.Data = []byte("always"), []byte("never")
	put(mine)
	put(yours)
	// Output:
	// applied <nil>
	// applied <nil>
	// conflict <nil>
}

// Revoking everything of an account is one write, which every use checks.
func ExampleCheck() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	mem := store.NewMemory()
	for range 2 {
		out, err := mem.Apply(ctx, now, []store.Op{store.Check("revocation", "a1.all", 0)})
		fmt.Println(out.Reason, out.Version, err)
		_, err = mem.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: "revocation", ID: "a1.all", Version: store.AnyVersion})})
		if err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// applied 0 <nil>
	// conflict 1 <nil>
}

// A worker leases what is due, and comes too late if it takes longer than that.
func ExampleMemory_Claim() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	mem := store.NewMemory()
	_, err := mem.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: "delivery", ID: "a1.d1", App: "bookbot", Due: now})})
	if err != nil {
		fmt.Println(err)
		return
	}
	claim := func(at time.Time) []store.Record {
		got, err := mem.Claim(ctx, store.Query{Kind: "delivery", DueBy: at, NotApps: []string{"a-dead-app"}, Limit: 10}, at.Add(10*time.Second))
		if err != nil {
			fmt.Println(err)
		}
		return got
	}
	first := claim(now)
	fmt.Println(len(first), len(claim(now)), len(claim(now.Add(10*time.Second))))
	out, err := mem.Apply(ctx, now, []store.Op{store.Delete("delivery", "a1.d1", first[0].Version)})
	fmt.Println(out.Reason, err)
	// Output:
	// 1 0 1
	// conflict <nil>
}

// Pages go on after the last ID of the page before.
func ExampleMemory_List() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	mem := store.NewMemory()
	var ops []store.Op
	for i := range 5 {
		ops = append(ops, store.Put(store.Record{Kind: "ledger", ID: fmt.Sprintf("a1.%04d", i)}))
	}
	if _, err := mem.Apply(ctx, now, ops); err != nil {
		fmt.Println(err)
		return
	}
	q := store.Query{Kind: "ledger", Prefix: "a1.", Reverse: true, Limit: 2}
	for {
		page, err := mem.List(ctx, q)
		if err != nil || len(page) == 0 {
			fmt.Println("end", err)
			return
		}
		for i, r := range page {
			fmt.Println(i, r.ID)
		}
		q.After = page[len(page)-1].ID
	}
	// Output:
	// 0 a1.0004
	// 1 a1.0003
	// 0 a1.0002
	// 1 a1.0001
	// 0 a1.0000
	// end <nil>
}

// What is over goes in bounded calls, by kind: the ledger stays longer than the tokens that it tells of.
func ExampleMemory_Purge() {
	ctx, now := context.Background(), time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	mem := store.NewMemory()
	for i := range 250 {
		id := fmt.Sprintf("a%d.t", i)
		if _, err := mem.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: "token", ID: id, NotAfter: now})}); err != nil {
			fmt.Println(err)
		}
	}
	for {
		removed, err := mem.Purge(ctx, "token", now.Add(time.Hour), 100)
		fmt.Println(removed, err)
		if removed < 100 {
			return
		}
	}
	// Output:
	// 100 <nil>
	// 100 <nil>
	// 50 <nil>
}
