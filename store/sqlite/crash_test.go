package sqlite_test

import (
	"context"
	"fmt"
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
func survives(t *testing.T, job crash.Job, rounds int) {
	rounds = crash.Rounds(rounds)
	where := filepath.Join(t.TempDir(), "db")
	s := open(t, where)
	require.NoError(t, job.Prepare(t.Context(), s))
	require.NoError(t, s.Close())
	said := crash.Kill(t, job, where, rounds)
	require.Greater(t, len(said), rounds, "the processes hardly did anything")
	done, err := job.Audit(t.Context(), open(t, where), said, rounds*crash.Workers)
	require.NoError(t, err)
	var sound string
	require.NoError(t, raw(t, where).QueryRow("PRAGMA integrity_check").Scan(&sound))
	require.Equal(t, "ok", sound)
	t.Logf("%d processes killed, %d writes acknowledged, %d done", rounds, len(said), len(done))
}

func TestCrash(t *testing.T) { survives(t, crash.Spending(), 100) }

func TestCrashOfGrants(t *testing.T) { survives(t, crash.Granting(), 200) }

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
