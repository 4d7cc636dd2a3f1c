package sqlite_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
)

func TestMain(m *testing.M) {
	crash.Main(func(where string) (store.Store, error) { return sqlite.Open(where) })
	os.Exit(m.Run())
}

// survives kills processes again and again, and holds what they had said against what is there. Nobody else has the file
// open meanwhile, so that each process begins with the log that the one before has left behind.
func survives(t *testing.T, job crash.Job, rounds int, before func(where string)) {
	rounds = crash.Rounds(rounds)
	where := filepath.Join(t.TempDir(), "db")
	s := open(t, where)
	require.NoError(t, job.Prepare(t.Context(), s))
	require.NoError(t, s.Close())
	said := crash.KillAfter(t, job, where, rounds, func() { before(where) })
	require.Greater(t, len(said), rounds, "the processes hardly did anything")
	done, err := job.Audit(t.Context(), open(t, where), said, rounds*crash.Workers)
	require.NoError(t, err)
	var sound string
	require.NoError(t, raw(t, where).QueryRow("PRAGMA integrity_check").Scan(&sound))
	require.Equal(t, "ok", sound)
	t.Logf("%d processes killed, %d writes acknowledged, %d done", rounds, len(said), len(done))
}

func nothing(string) {}

func TestCrash(t *testing.T) { survives(t, crash.Spending(), 100, nothing) }

func TestCrashOfGrants(t *testing.T) { survives(t, crash.Granting(), 200, nothing) }

// Each process enters thousands of entries of the ledger into their index, soon after it has begun.
func TestCrashAtTheIndex(t *testing.T) {
	n, sorted := 0, 0
	moved := make(map[int]bool)
	survives(t, crash.Spending(), 30, func(where string) {
		db := raw(t, where)
		var rows int
		require.NoError(t, db.QueryRow("SELECT n, (SELECT count(*) FROM behest_log WHERE n > (SELECT n FROM behest_log_sorted)) FROM behest_log_sorted").Scan(&sorted, &rows))
		require.NoError(t, db.Close())
		moved[sorted] = true
		s := open(t, where)
		var all sync.WaitGroup
		ids := make(chan string)
		for range writers {
			all.Go(func() {
				for id := range ids {
					if _, err := s.Apply(context.Background(), now, []store.Op{store.Put(store.Record{Kind: "ledger", ID: id, Owner: "li"})}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		const most = 16384 // as package sqlstore has it
		for range most - rows - rand.IntN(40) {
			n++
			ids <- fmt.Sprintf("f%d.%09d", n%500, n)
		}
		close(ids)
		all.Wait()
		require.NoError(t, s.Close())
	})
	t.Logf("%d entries in the index, which were entered at %d times", sorted, len(moved)-1)
	require.Greater(t, len(moved), crash.Rounds(30)/3, "it is hardly ever the processes that do")
}

// One process writes on while others on the same file are killed: neither loses what it has, and each waits for the others.
func TestCrashOfOthers(t *testing.T) {
	where := filepath.Join(t.TempDir(), "db")
	s, job := open(t, where), crash.Spending()
	require.NoError(t, job.Prepare(t.Context(), s))
	work, err := job.Begin(s)
	require.NoError(t, err)
	var all sync.WaitGroup
	var mu sync.Mutex
	var mine []string
	end := make(chan struct{})
	for w := range crash.Workers {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-end:
					return
				default:
				}
				if err := work(context.Background(), fmt.Sprintf("here-%d-%d", w, i), func(line string) {
					mu.Lock()
					defer mu.Unlock()
					mine = append(mine, line)
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	rounds := crash.Rounds(20)
	said := crash.Kill(t, job, where, rounds)
	close(end)
	all.Wait()
	done, err := job.Audit(t.Context(), s, append(said, mine...), rounds*crash.Workers)
	require.NoError(t, err)
	t.Logf("%d processes killed with %d uses acknowledged, beside %d of a process that stayed; %d done", rounds, len(said), len(mine), len(done))
}
