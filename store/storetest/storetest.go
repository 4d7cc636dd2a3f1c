// Package storetest holds what every [store.Store] must do, as tests to run: those of behest and any of your own.
//
// The laws are those of package store. Each rule here is one sentence of them, with a name under which it fails:
//
//	--- FAIL: TestStore/spend-race
//	    exactly as many spend as there was to spend, however many try, on however many nodes
//
// Format: one exported function, [Run]. Every rule gets a fresh, empty store as two nodes see it, and is a subtest,
// so that "go test -run TestStore/claim" picks some. Nothing here waits for a clock; rules with concurrency start at
// most 64 goroutines and end them.
//
// Use:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) (a, b store.Store) {
//			path := filepath.Join(t.TempDir(), "db")
//			return open(t, path), open(t, path)
//		})
//	}
package storetest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/behest-go/behest/store"
)

// Run runs every rule as a subtest of t. open is called once for each: it returns two handles on the same data, which
// is empty and used by nobody else, opened as two processes would open it; a store that lives in one process returns
// it twice. What open has to clean up it leaves to t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) (a, b store.Store)) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Log(r.law)
			a, b := open(t)
			r.check(&nodes{TB: t, a: a, b: b})
		})
	}
}

// A rule is one thing that a store must do.
type rule struct {
	name  string
	law   string
	check func(n *nodes)
}

var rules = concat(putRules, spendRules, batchRules, raceRules, valueRules, listRules, claimRules, purgeRules, refusalRules)

func concat(groups ...[]rule) (all []rule) {
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

// start is the time in most rules: with microseconds, and no other part of a store's life in it.
var start = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

var background = context.Background()

// nodes is a test with a store that two nodes share.
type nodes struct {
	testing.TB
	a, b store.Store
}

// either gives the nodes in turn.
func (n *nodes) either(i int) store.Store {
	if i%2 == 0 {
		return n.a
	}
	return n.b
}

// apply is an Apply at start that must not fail.
func (n *nodes) apply(ops ...store.Op) store.Outcome {
	n.Helper()
	return n.applyAt(start, ops...)
}

func (n *nodes) applyAt(now time.Time, ops ...store.Op) store.Outcome {
	n.Helper()
	out, err := n.a.Apply(background, now, ops)
	if err != nil {
		n.Fatalf("Apply: %v", err)
	}
	return out
}

// done is an Apply that must go through.
func (n *nodes) done(ops ...store.Op) store.Outcome {
	n.Helper()
	out := n.apply(ops...)
	if !out.Applied() {
		n.Fatalf("Apply refused: %v by operation %d", out.Reason, out.Op)
	}
	return out
}

// answers requires an outcome.
func (n *nodes) answers(got, want store.Outcome) {
	n.Helper()
	if got != want {
		n.Errorf("outcome is %+v, want %+v", got, want)
	}
}

// get reads at the other node: what one has acknowledged, every other sees.
func (n *nodes) get(kind, id string) (r store.Record, ok bool) {
	n.Helper()
	got, err := n.b.Get(background, kind, id)
	if err != nil {
		n.Fatalf("Get(%q, %q): %v", kind, short(id), err)
	}
	switch len(got) {
	case 0:
		return r, false
	case 1:
		return got[0], true
	}
	n.Fatalf("Get(%q, %q) returned %d records", kind, short(id), len(got))
	return r, false
}

// holds requires that exactly this record is there.
func (n *nodes) holds(want store.Record) {
	n.Helper()
	got, ok := n.get(want.Kind, want.ID)
	if !ok {
		n.Errorf("%s %q is gone", want.Kind, short(want.ID))
		return
	}
	n.same(got, want)
}

// lacks requires that there is no such record.
func (n *nodes) lacks(kind, id string) {
	n.Helper()
	if got, ok := n.get(kind, id); ok {
		n.Errorf("%s %q is there: %+v", kind, short(id), got)
	}
}

// same requires that a record that was read is the one that was written.
func (n *nodes) same(got, want store.Record) {
	n.Helper()
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"Kind", got.Kind, want.Kind}, {"ID", got.ID, want.ID}, {"Version", got.Version, want.Version}, {"Owner", got.Owner, want.Owner},
		{"App", got.App, want.App}, {"Left", got.Left, want.Left},
	} {
		if f.got != f.want {
			n.Errorf("%s of %s %q is %s, want %s", f.name, want.Kind, short(want.ID), short(fmt.Sprintf("%#v", f.got)), short(fmt.Sprintf("%#v", f.want)))
		}
	}
	if !bytes.Equal(got.Data, want.Data) {
		n.Errorf("Data of %s %q is %q, want %q", want.Kind, short(want.ID), short(string(got.Data)), short(string(want.Data)))
	}
	n.sameTime("Due", got.Due, want.Due)
	n.sameTime("NotAfter", got.NotAfter, want.NotAfter)
}

func (n *nodes) sameTime(name string, got, want time.Time) {
	n.Helper()
	switch {
	case want.IsZero() != got.IsZero():
		n.Errorf("%s is %v, want %v", name, got, want)
	case !want.Truncate(time.Microsecond).Equal(got.Truncate(time.Microsecond)):
		n.Errorf("%s is %v, want %v to the microsecond", name, got, want)
	case got.Location().String() != "UTC":
		n.Errorf("%s is in %v, want UTC", name, got.Location())
	}
}

// list is a List that must not fail, at the other node.
func (n *nodes) list(q store.Query) []store.Record {
	n.Helper()
	got, err := n.b.List(background, q)
	if err != nil {
		n.Fatalf("List(%+v): %v", q, err)
	}
	return got
}

func (n *nodes) claim(q store.Query, until time.Time) []store.Record {
	n.Helper()
	got, err := n.a.Claim(background, q, until)
	if err != nil {
		n.Fatalf("Claim(%+v): %v", q, err)
	}
	return got
}

func (n *nodes) purge(kind string, before time.Time, count int) int {
	n.Helper()
	got, err := n.a.Purge(background, kind, before, count)
	if err != nil {
		n.Fatalf("Purge: %v", err)
	}
	return got
}

// sameIDs requires these IDs in this order.
func (n *nodes) sameIDs(what string, got []store.Record, want ...string) {
	n.Helper()
	for i := 0; i < len(got) || i < len(want); i++ {
		switch {
		case i >= len(want):
			n.Errorf("%s: %d records, want %d: %q is too many", what, len(got), len(want), short(got[i].ID))
		case i >= len(got):
			n.Errorf("%s: %d records, want %d: %q is missing", what, len(got), len(want), short(want[i]))
		case got[i].ID != want[i]:
			n.Errorf("%s: record %d of %d is %q, want %q", what, i, len(got), short(got[i].ID), short(want[i]))
		default:
			continue
		}
		return
	}
}

// fill writes many records, as few calls as the aggregates allow. Version is 0 and must be.
func (n *nodes) fill(records ...store.Record) {
	n.Helper()
	ops := make(map[string][]store.Op)
	for _, r := range records {
		name := store.Aggregate(r.ID)
		ops[name] = append(ops[name], store.Put(r))
		if len(ops[name]) == store.MaxBatch {
			n.done(ops[name]...)
			ops[name] = nil
		}
	}
	for _, some := range ops {
		if len(some) > 0 {
			n.done(some...)
		}
	}
}

// race runs f in k goroutines that start together, on the nodes in turn, and waits for them. f must not end the test.
func (n *nodes) race(k int, f func(i int, s store.Store)) {
	var ready, done sync.WaitGroup
	ready.Add(k)
	for i := range k {
		done.Go(func() {
			ready.Done()
			ready.Wait()
			f(i, n.either(i))
		})
	}
	done.Wait()
}

// short is s for a message.
func short(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("%s… (%d bytes)", s[:60], len(s))
	}
	return s
}
