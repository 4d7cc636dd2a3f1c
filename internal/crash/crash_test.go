package crash_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/store"
)

func TestMain(m *testing.M) {
	crash.Main(func(where string) (store.Store, error) {
		if where == "nowhere" {
			return nil, errors.New("nothing is there")
		}
		return store.NewMemory(), nil
	})
	os.Exit(m.Run())
}

// do has some work done by several at once, and returns what they said.
func do(t testing.TB, job crash.Job, st store.Store, times int) (said []string) {
	t.Helper()
	work, err := job.Begin(st)
	require.NoError(t, err)
	var mu sync.Mutex
	var all sync.WaitGroup
	for w := range crash.Workers {
		all.Go(func() {
			for i := range times {
				// Of an error, as of a kill, the audit has to find out what it means.
				_ = work(context.Background(), fmt.Sprintf("r0-%d-%d", w, i), func(line string) {
					mu.Lock()
					defer mu.Unlock()
					said = append(said, line)
				})
			}
		})
	}
	all.Wait()
	return said
}

// liar is a store that does not keep the contract.
type liar struct {
	store.Store
	calls atomic.Int64
	apply func(s store.Store, call int64, now time.Time, ops []store.Op) (store.Outcome, error)
}

func (l *liar) Apply(_ context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	return l.apply(l.Store, l.calls.Add(1), now, ops)
}

func apply(s store.Store, now time.Time, ops []store.Op) (store.Outcome, error) {
	return s.Apply(context.Background(), now, ops)
}

// without leaves out the operations of a verb.
func without(ops []store.Op, verb store.Verb) (out []store.Op) {
	for _, op := range ops {
		if op.Verb != verb {
			out = append(out, op)
		}
	}
	return out
}

var jobs = map[string]crash.Job{"spending": crash.Spending(), "granting": crash.Granting()}

// What a good store is said to have done is there, whether or not answers were lost.
func TestAuditAccepts(t *testing.T) {
	for name, job := range jobs {
		t.Run(name, func(t *testing.T) {
			st := store.NewMemory()
			require.NoError(t, job.Prepare(t.Context(), st))
			lost := errors.New("the answer is lost")
			said := do(t, job, &liar{Store: st, apply: func(s store.Store, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
				out, err := apply(s, now, ops)
				if call%7 == 0 {
					return store.Outcome{}, lost
				}
				return out, err
			}}, 40)
			done, err := job.Audit(t.Context(), st, said, 4*40)
			require.NoError(t, err)
			require.Greater(t, len(done), len(said))
			require.Greater(t, len(said), 40)
		})
	}
}

// Every law that a store may break is one by which it is found out.
func TestAuditRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		apply      func(s store.Store, call int64, now time.Time, ops []store.Op) (store.Outcome, error)
		unanswered int
		want       map[string]string
	}{
		"what was acknowledged is lost": {
			apply: func(s store.Store, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
				if call%10 == 0 {
					return store.Outcome{}, nil
				}
				return apply(s, now, ops)
			},
			want: map[string]string{"spending": "was acknowledged and is lost", "granting": ""},
		},
		"uses are not counted": {
			apply: func(s store.Store, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
				if call%10 == 0 && len(without(ops, store.VerbSpend)) < len(ops) {
					ops = without(ops, store.VerbSpend)
				}
				return apply(s, now, ops)
			},
			want: map[string]string{"spending": "uses are spent, and", "granting": "a use too many"},
		},
		"the ledger is left out": {
			apply: func(s store.Store, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
				if last := ops[len(ops)-1]; call%10 == 0 && last.Record.Kind == "ledger" {
					ops = ops[:len(ops)-1]
				}
				return apply(s, now, ops)
			},
			want: map[string]string{"spending": "was acknowledged and is lost", "granting": "in the ledger"},
		},
		"refusals that were none": {
			apply: func(s store.Store, call int64, now time.Time, ops []store.Op) (store.Outcome, error) {
				out, err := apply(s, now, ops)
				if call%10 == 0 {
					return store.Outcome{Reason: store.Exhausted, Op: 3}, nil
				}
				return out, err
			},
			want: map[string]string{"spending": "at most 0 had no answer", "granting": "at most 0 had no answer"},
		},
	} {
		for job, want := range test.want {
			t.Run(name+"/"+job, func(t *testing.T) {
				st := store.NewMemory()
				require.NoError(t, jobs[job].Prepare(t.Context(), st))
				said := do(t, jobs[job], &liar{Store: st, apply: test.apply}, 40)
				_, err := jobs[job].Audit(t.Context(), st, said, test.unanswered)
				require.ErrorContains(t, err, "crash: "+job+": ")
				require.ErrorContains(t, err, want)
			})
		}
	}
}

func TestAuditRefusesWhatNobodySays(t *testing.T) {
	for name, job := range jobs {
		st := store.NewMemory()
		require.NoError(t, job.Prepare(t.Context(), st))
		_, err := job.Audit(t.Context(), st, []string{"well done"}, 0)
		require.ErrorContains(t, err, `"well done" was said`, name)
	}
}

// What killed processes said is whole lines; and each round is other work than those before.
func TestKill(t *testing.T) {
	said := crash.Kill(t, crash.Granting(), "anywhere", 10)
	once := make(map[string]int)
	for _, line := range said {
		if strings.HasPrefix(line, "issued ") {
			require.Len(t, strings.Fields(line), 3, line)
			once[strings.Fields(line)[1]]++
		}
	}
	require.NotEmpty(t, once)
	for id, n := range once {
		require.Equal(t, 1, n, id)
	}
}

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	fatal string
}

func (r *recorder) Helper() {}
func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	panic(r)
}

// A process that fails by itself fails the test, with its own words.
func TestKillTellsOfErrors(t *testing.T) {
	for where, want := range map[string]string{"nowhere": "nothing is there", "anywhere": "a.r0-"} {
		r := &recorder{TB: t}
		func() {
			defer func() { require.Same(t, r, recover()) }()
			for range 100 { // it may be killed before it can say so
				crash.Kill(r, crash.Spending(), where, 1)
			}
		}()
		require.Contains(t, r.fatal, want)
	}
}

func Example() {
	ctx, st := context.Background(), store.NewMemory()
	job := crash.Spending()
	if err := job.Prepare(ctx, st); err != nil {
		panic(err)
	}
	work, err := job.Begin(st)
	if err != nil {
		panic(err)
	}
	var said []string
	for _, id := range []string{"1", "2"} {
		if err := work(ctx, id, func(line string) { said = append(said, line) }); err != nil {
			panic(err)
		}
	}
	done, err := job.Audit(ctx, st, said, 0)
	fmt.Println(strings.Join(said, ", "), "|", done, err)
	_, err = job.Audit(ctx, st, append(said, "spent a.3"), 0)
	fmt.Println(err)
	// Output:
	// spent a.1, spent a.2 | [a.1 a.2] <nil>
	// crash: spending: a.3 was acknowledged and is lost
}
