package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
)

const (
	crashes      = 32
	crashWorkers = 4
	crashUses    = int64(1) << 40
)

func TestMain(m *testing.M) {
	if where := os.Getenv("BEHEST_CRASH"); where != "" {
		spendUntilKilled(where)
		return
	}
	os.Exit(m.Run())
}

// spendUntilKilled is another process: it spends, and says so once it is acknowledged.
func spendUntilKilled(where string) {
	check := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	s, err := sqlite.Open(where)
	check(err)
	var workers sync.WaitGroup
	for w := range crashWorkers {
		workers.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("a.%d-%d-%d", os.Getpid(), w, i)
				out, err := s.Apply(context.Background(), now, []store.Op{
					store.Check("revocation", "a.all", 0), store.Spend("token", "a.t", 1, nil), store.Put(store.Record{Kind: "ledger", ID: id, Owner: "li", Data: []byte(id)}),
				})
				if err == nil && !out.Applied() {
					err = fmt.Errorf("refused: %+v", out)
				}
				check(err)
				_, err = fmt.Println("spent", id)
				check(err)
			}
		})
	}
	workers.Wait()
}

// crash starts the other process and kills it once it has acknowledged a few. It returns all that was acknowledged.
func crash(t *testing.T, where string, after int) (acknowledged []string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "BEHEST_CRASH="+where)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break // what it has begun to say is not said
		}
		require.NoError(t, err)
		what, id, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		require.Equal(t, "spent", what, line)
		if acknowledged = append(acknowledged, id); len(acknowledged) == after {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	require.Error(t, cmd.Wait(), "it was not killed")
	require.GreaterOrEqual(t, len(acknowledged), after)
	return acknowledged
}

// TestCrash kills processes again and again, and holds what they had said against what is there.
func TestCrash(t *testing.T) {
	where := filepath.Join(t.TempDir(), "db")
	s := open(t, where)
	rounds := crashes
	if testing.Short() {
		rounds = 4
	}
	_, err := s.Apply(t.Context(), now, []store.Op{store.Put(store.Record{Kind: "token", ID: "a.t", Left: crashUses})})
	require.NoError(t, err)
	var acknowledged []string
	for range rounds {
		acknowledged = append(acknowledged, crash(t, where, 1+rand.IntN(30))...)
	}
	written := make(map[string]bool)
	for q := (store.Query{Kind: "ledger", Prefix: "a.", Limit: store.MaxPage}); ; {
		page, err := s.List(t.Context(), q)
		require.NoError(t, err)
		for _, r := range page {
			require.Equal(t, r.ID, string(r.Data))
			written[r.ID] = true
		}
		if len(page) == 0 {
			break
		}
		q.After = page[len(page)-1].ID
	}
	for _, id := range acknowledged {
		require.True(t, written[id], "%s was acknowledged and is lost", id)
	}
	got, err := s.Get(t.Context(), "token", "a.t")
	require.NoError(t, err)
	require.Equal(t, int64(len(written)), crashUses-got[0].Left, "what was spent and what was written down")
	require.LessOrEqual(t, len(written)-len(acknowledged), rounds*(crashWorkers+1), "more was done than can have been on its way")
	t.Logf("%d processes killed, %d uses acknowledged, %d done", rounds, len(acknowledged), len(written))
}
