// Package crash kills processes in the middle of their work, and holds what they had said against what the store has kept.
//
// The laws, of every store that keeps what it acknowledges:
//
//  1. What was said is there: a process says what it did only after the store has acknowledged it.
//  2. Nothing is there twice: as much is spent as is written down as spent.
//  3. Nothing comes from nowhere: beyond what was said there is at most one write for each worker that had no answer when it was killed.
//
// Format: a killed process is this very test binary, started again with BEHEST_CRASH in its environment. It says lines of words on its standard output; a
// line that lacks its end was not said.
//
// Use, in a package of tests:
//
//	func TestMain(m *testing.M) {
//		crash.Main(func(where string) (store.Store, error) { return sqlite.Open(where) })
//		os.Exit(m.Run())
//	}
//
//	job := crash.Spending()
//	err := job.Prepare(ctx, st)
//	rounds := crash.Rounds(200)
//	said := crash.Kill(t, job, where, rounds)
//	done, err := job.Audit(ctx, st, said, rounds*crash.Workers)
//
// Where it is the server that dies, and not its client, the test itself does the work (see [Job.Begin]) and says what was acknowledged.
package crash

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/behest-go/behest/store"
)

// Workers is how many work at once in a process that will be killed.
const Workers = 4

const variable = "BEHEST_CRASH"

// Rounds is n, or a tenth of it with -short and under the race detector, which slows the start of each process tenfold.
func Rounds(n int) int {
	if slow || testing.Short() {
		return (n + 9) / 10
	}
	return n
}

// A Work is done once for each id, which nobody has used before: letters, digits and "-". It calls say with a line for each write that
// the store has acknowledged. After an error, and after a kill, the last write may have happened, and only that. It may be called by many at once.
type Work func(ctx context.Context, id string, say func(line string)) error

// A Job is what killed processes do, and how it is looked into afterwards. It comes from [Spending] or [Granting].
type Job struct {
	name    string
	prepare func(context.Context, store.Store) error
	begin   func(store.Store) (Work, error)
	audit   func(ctx context.Context, st store.Store, said []string, unanswered int) ([]string, error)
}

// Prepare writes what the work needs. Call it once on an empty store.
func (j Job) Prepare(ctx context.Context, st store.Store) error { return j.prepare(ctx, st) }

// Begin returns the work of this job on st.
func (j Job) Begin(st store.Store) (Work, error) { return j.begin(st) }

// Audit looks at what is in st, now that nobody writes to it any more. said are the lines of all that worked; unanswered is how many writes had no answer at
// most. It returns what was done, by the IDs of its ledger entries. An error says which law does not hold.
func (j Job) Audit(ctx context.Context, st store.Store, said []string, unanswered int) (done []string, err error) {
	if done, err = j.audit(ctx, st, said, unanswered); err != nil {
		return nil, fmt.Errorf("crash: %s: %w", j.name, err)
	}
	return done, nil
}

// Main does not return in a process that [Kill] has started: it works on the store that open finds at where, until it is killed. In any
// other process it does nothing. Call it first in TestMain.
func Main(open func(where string) (store.Store, error)) {
	what, ok := os.LookupEnv(variable)
	if !ok {
		return
	}
	fmt.Println("error", work(what, open))
	os.Exit(1)
}

func work(what string, open func(where string) (store.Store, error)) error {
	words := strings.SplitN(what, " ", 3)
	if len(words) != 3 {
		return fmt.Errorf("%s is %q", variable, what)
	}
	var job Job
	for _, j := range []Job{Spending(), Granting()} {
		if j.name == words[0] {
			job = j
		}
	}
	if job.begin == nil {
		return fmt.Errorf("no job has the name %q", words[0])
	}
	st, err := open(words[2])
	if err != nil {
		return err
	}
	do, err := job.begin(st)
	if err != nil {
		return err
	}
	failed := make(chan error, Workers)
	var one sync.Mutex
	say := func(line string) {
		one.Lock()
		defer one.Unlock()
		fmt.Println(line) // one write
	}
	for w := range Workers {
		go func() {
			for i := 0; ; i++ {
				if err := do(context.Background(), fmt.Sprintf("%s-%d-%d", words[1], w, i), say); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

// Kill has as many processes as rounds do the job at where, one after the other, and kills each at a moment that nobody knows: some before they have opened the store. It
// returns all that they said.
func Kill(t testing.TB, job Job, where string, rounds int) (said []string) {
	t.Helper()
	return KillAfter(t, job, where, rounds, func() {})
}

// KillAfter is Kill with something that is done before each process begins.
func KillAfter(t testing.TB, job Job, where string, rounds int, before func()) (said []string) {
	t.Helper()
	for round := range rounds {
		before()
		lines, err := kill(t.Context(), fmt.Sprintf("%s r%d %s", job.name, round, where), rand.IntN(40))
		if err != nil {
			t.Fatalf("crash: process %d: %v", round, err)
		}
		said = append(said, lines...)
	}
	return said
}

// kill starts a process, and kills it a moment after it has said so many lines.
func kill(ctx context.Context, what string, after int) (said []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), variable+"="+what)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		if failed := cmd.Wait(); failed == nil {
			err = errors.Join(err, errors.New("it was not killed"))
		}
	}()
	var end *time.Timer
	strike := func(within time.Duration) {
		end = time.AfterFunc(rand.N(within), func() { _ = cmd.Process.Kill() })
	}
	if after == 0 {
		strike(50 * time.Millisecond) // about as long as it takes to start
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break // what it has begun to say is not said
		}
		if err != nil {
			return nil, err
		}
		line = strings.TrimSuffix(line, "\n")
		if why, ok := strings.CutPrefix(line, "error "); ok {
			return nil, errors.New(why)
		}
		if said = append(said, line); end == nil && len(said) >= after {
			strike(3 * time.Millisecond)
		}
	}
	if end == nil {
		return nil, fmt.Errorf("it ended by itself after %d lines: %q", len(said), said)
	}
	return said, nil
}
