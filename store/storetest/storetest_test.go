package storetest

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/behest-go/behest/store"
)

func TestPlain(t *testing.T) {
	Run(t, func(*testing.T) (a, b store.Store) { return newPlain("").nodes() })
}

// faults are what somebody's store may do wrong, and the rule that must notice.
var faults = []struct{ fault, rule string }{
	{"a brace in an ID is a hash tag", "id-special"},
	{"a call that is given up is done once more", "lost-answer-once"},
	{"a Get is several reads", "half-read"},
	{"a lost answer undoes what others did", "lost-answer-once"},
	{"a node remembers what it has read", "two-nodes"},
	{"a node writes later", "two-nodes"},
	{"a Put keeps what is empty", "put-replaces"},
	{"a Put sets Left", "put-replaces"},
	{"a Spend adds to Version", "spend"},
	{"a Spend is read, then written", "spend-race"},
	{"a Spend takes what there is", "spend-exhausted"},
	{"a Prefix is a pattern", "list-prefix"},
	{"a query sees 5000 records", "list-many"},
	{"a quote ends an ID", "id-special"},
	{"a claim at Due is early", "claim-due"},
	{"a claim has no version", "claim-fence"},
	{"a claim has no version", "claim-relay"},
	{"a claim is no lease", "claim-lease"},
	{"a claim returns the record as it was", "claim"},
	{"a refusal says nothing of what is there", "outcome"},
	{"a repeated call is answered as before", "lost-answer-told"},
	{"a lease takes all the time", "claim-half"},
	{"After does not reverse", "list-after"},
	{"After is a place", "list-many"},
	{"After is on the page again", "list-pages"},
	{"an App is a pattern", "id-special"},
	{"an Apply is several writes", "half-read"},
	{"an answer may be lost half-way", "lost-answer"},
	{"an Owner ends at a zero byte", "id-special"},
	{"calls are not validated", "invalid-apply"},
	{"Check 0 is no check", "check"},
	{"Claim goes by ID", "claim-order"},
	{"Claim ignores NotApps", "claim-filters"},
	{"Claim sorts NotApps", "copy-given"},
	{"contexts are ignored", "cancelled"},
	{"Data of a page is one piece", "copy-apart"},
	{"Delete needs a record", "delete-any"},
	{"Exhausted comes before Expired", "spend-order"},
	{"Get sorts", "get"},
	{"Get sorts what it is given", "copy-given"},
	{"given Data is kept", "copy-in"},
	{"given Data is kept", "copy-race"},
	{"IDs are cut at 255 bytes", "id-long"},
	{"IDs end at a zero byte", "id-bytes"},
	{"IDs ignore case", "id-like"},
	{"IDs must be UTF-8", "id-bytes"},
	{"init is free", "spend-init"},
	{"init overwrites", "init-race"},
	{"kinds share IDs", "kinds"},
	{"Left is of the first Spend", "outcome"},
	{"Left is of the last Spend", "outcome"},
	{"List is unsorted", "list-order"},
	{"no time is 1970", "clock-never"},
	{"NotAfter itself is in time", "clock-edge"},
	{"NotApps is a list with commas", "id-special"},
	{"now is rounded", "clock-nano"},
	{"now is the clock's", "clock-is-the-callers"},
	{"operations are put in order", "copy-given"},
	{"order ignores case", "list-order"},
	{"order is by aggregate first", "list-order"},
	{"Purge takes all at once", "purge-bound"},
	{"Purge takes every kind", "purge"},
	{"Purge takes what is just over", "purge"},
	{"Purge takes what never ends", "purge"},
	{"refused operations are undone later", "half-batch"},
	{"refused operations stay", "all-or-nothing"},
	{"refused operations stay", "lost-answer-told"},
	{"returned Data is shared", "copy-out"},
	{"Spend 0 always works", "spend-zero"},
	{"the last operation is blamed", "all-or-nothing"},
	{"the last writer wins", "put-new-taken"},
	{"times as 64-bit nanoseconds", "clock-far"},
	{"times begin in 1583", "clock-far"},
	{"times in the caller's zone", "clock-zones"},
	{"times to the millisecond", "put-new"},
	{"times to the second", "clock-edge"},
	{"two workers may claim at once", "claim-race"},
	{"two workers may claim what was leased", "claim-relay"},
	{"versions are checked outside the lock", "create-race"},
}

func TestFaultsAreCaught(t *testing.T) {
	for _, f := range faults {
		t.Run(f.fault, func(t *testing.T) {
			i := slices.IndexFunc(rules, func(r rule) bool { return r.name == f.rule })
			if i < 0 {
				t.Fatalf("there is no rule %q", f.rule)
			}
			// Some show only if two get into each other's way; a few rounds, for a machine that has no time for that.
			var said []string
			for round := 0; len(said) == 0 && round < 20; round++ {
				p := newPlain(f.fault)
				a, b := p.nodes()
				said = try(t, rules[i], a, b)
			}
			if len(said) == 0 {
				t.Fatalf("rule %q did not notice", f.rule)
			}
			t.Logf("%s: %s", f.rule, said[0])
		})
	}
}

func TestRulesAreNamed(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range rules {
		if seen[r.name] || r.law == "" || r.name != strings.ToLower(r.name) || strings.Contains(r.name, " ") {
			t.Errorf("rule %q", r.name)
		}
		seen[r.name] = true
	}
}

// try runs a rule and returns what it complained about.
func try(t *testing.T, r rule, a, b store.Store) []string {
	rec := &recorder{TB: t}
	done := make(chan struct{})
	go func() { // FailNow ends a goroutine
		defer close(done)
		r.check(&nodes{TB: rec, a: a, b: b})
	}()
	<-done
	return rec.said
}

// A recorder is a test that fails without consequences.
type recorder struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func (r *recorder) Helper() {}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.said) > 0
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// TestMemoryIsPlain lets Memory and the simple store do the same for a long while, and compares every answer.
func TestMemoryIsPlain(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var m, p store.Store = store.NewMemory(), newPlain("")
			aggregates := []string{"a", "a!", "a-b", "", "b", "aa"}
			kinds := []string{"t", "u"}
			apps := []string{"", "x", "y", "z"}
			spread := 4 << (2 * (seed % 3)) // few IDs that are hit often, or many
			pickTime := func() time.Time {
				if rnd.IntN(3) == 0 {
					return time.Time{}
				}
				return start.Add(time.Duration(rnd.IntN(40)-20) * time.Microsecond)
			}
			id := func(aggregate string) string {
				if k := rnd.IntN(spread + 1); k > 0 {
					return fmt.Sprintf("%s.%d", aggregate, k)
				}
				if aggregate == "" {
					return "."
				}
				return aggregate
			}
			record := func(aggregate string) store.Record {
				versions := []uint64{0, 1, 2, store.AnyVersion, store.AnyVersion}
				return store.Record{
					Kind: kinds[rnd.IntN(2)], ID: id(aggregate), Version: versions[rnd.IntN(5)], Owner: apps[rnd.IntN(4)], App: apps[rnd.IntN(4)],
					Due: pickTime(), NotAfter: pickTime(), Left: int64(rnd.IntN(4)), Data: []byte(fmt.Sprint(rnd.IntN(1000))),
				}
			}
			query := func() store.Query {
				q := store.Query{Kind: kinds[rnd.IntN(2)], Limit: 1 + rnd.IntN(30), Reverse: rnd.IntN(2) == 0}
				if rnd.IntN(2) == 0 {
					q.Prefix = aggregates[rnd.IntN(6)] + []string{"", ".", ".1"}[rnd.IntN(3)]
				}
				if rnd.IntN(3) == 0 {
					q.App = apps[rnd.IntN(4)]
				}
				if rnd.IntN(4) == 0 {
					q.NotApps = apps[rnd.IntN(4):]
				}
				if rnd.IntN(4) == 0 {
					q.Owner = apps[rnd.IntN(4)]
				}
				if rnd.IntN(3) == 0 {
					q.DueBy = pickTime()
				}
				if rnd.IntN(2) == 0 {
					q.After = id(aggregates[rnd.IntN(6)])
				}
				return q
			}
			for step := range 2000 {
				var what string
				var a, b any
				var errA, errB error
				switch rnd.IntN(10) {
				default:
					aggregate := aggregates[rnd.IntN(6)]
					var ops []store.Op
					for range 1 + rnd.IntN(4) {
						r := record(aggregate)
						switch rnd.IntN(8) {
						case 0:
							ops = append(ops, store.Delete(r.Kind, r.ID, r.Version))
						case 1:
							ops = append(ops, store.Check(r.Kind, r.ID, r.Version))
						case 2:
							ops = append(ops, store.Spend(r.Kind, r.ID, int64(rnd.IntN(3)), nil))
						case 3:
							ops = append(ops, store.Spend(r.Kind, r.ID, int64(rnd.IntN(3)), &r))
						default:
							ops = append(ops, store.Put(r))
						}
					}
					now := pickTime()
					what = fmt.Sprintf("Apply(%v, %+v)", now, ops)
					a, errA = m.Apply(background, now, ops)
					b, errB = p.Apply(background, now, ops)
				case 0, 1:
					q := query()
					what = fmt.Sprintf("List(%+v)", q)
					a, errA = m.List(background, q)
					b, errB = p.List(background, q)
				case 2:
					kind, ids := kinds[rnd.IntN(2)], []string{id("a"), id("b"), id("a"), id(""), id("a-b")}
					what = fmt.Sprintf("Get(%q, %q)", kind, ids)
					a, errA = m.Get(background, kind, ids...)
					b, errB = p.Get(background, kind, ids...)
				case 3:
					q, until := query(), start.Add(time.Duration(rnd.IntN(30))*time.Microsecond)
					what = fmt.Sprintf("Claim(%+v, %v)", q, until)
					a, errA = m.Claim(background, q, until)
					q.After, q.Reverse = "", false
					b, errB = p.Claim(background, q, until)
				case 4:
					if rnd.IntN(4) > 0 {
						continue
					}
					kind, before := kinds[rnd.IntN(2)], pickTime()
					what = fmt.Sprintf("Purge(%q, %v)", kind, before)
					a, errA = m.Purge(background, kind, before, store.MaxPage)
					b, errB = p.Purge(background, kind, before, store.MaxPage)
				}
				if (errA == nil) != (errB == nil) || errA == nil && fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) {
					t.Fatalf("step %d: %s\nmemory: %+v, %v\nplain:  %+v, %v", step, what, a, errA, b, errB)
				}
			}
		})
	}
}
