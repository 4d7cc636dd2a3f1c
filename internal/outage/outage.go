// Package outage holds a store, and what stands on it, against servers that die, connections that break in the middle of
// a word, and networks that keep silent.
//
// The laws, of every store that keeps what it acknowledges:
//
//  1. A call ends within its context's deadline. Its error names the store and the call, and is never taken for a refusal.
//  2. What was acknowledged is there. What had no answer has happened once or not at all: nobody sends a write again.
//  3. Nodes find their way back by themselves.
//
// Each check returns an error that says which law does not hold; its own tests try it on stores that break them.
//
// Use:
//
//	figures, err := outage.Restarts(ctx, "redisstore: ", crash.Granting(), []store.Store{a, b}, 10, server.Kill, server.Start)
//	figures, err = outage.Cuts(ctx, "redisstore: ", servers.StartProxy(t, server.Addr()), through, direct, 1)
//	what, err := outage.Prepare(ctx, "redisstore: ", st)
//	server.Kill()
//	err = what.Away(ctx, time.Second)
//	server.Start()
//	err = what.Back(ctx, false)
package outage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/store"
)

// Figures are what a check has seen, so that a test can tell whether it saw enough.
type Figures struct {
	Acknowledged int // writes
	Unanswered   int // calls that failed: their writes happened once or not at all
	Done         int // writes that are there
}

// String is for logs.
func (f Figures) String() string {
	return fmt.Sprintf("%d writes acknowledged, %d without an answer, %d done", f.Acknowledged, f.Unanswered, f.Done)
}

const (
	workers  = 8
	callTime = 10 * time.Second // a call's deadline
	slack    = 2 * time.Second  // for a busy machine: what a call may take beyond its deadline
	backTime = 30 * time.Second // how long a node may take to find its way back
)

// Restarts has workers do a job on the nodes, while the server that these share is killed and started again, so many
// times, each time at a moment that nobody knows. An error of the nodes begins with name. It prepares the job and audits it.
func Restarts(ctx context.Context, name string, job crash.Job, nodes []store.Store, rounds int, kill, start func()) (Figures, error) {
	if err := job.Prepare(ctx, nodes[0]); err != nil {
		return Figures{}, err
	}
	l := &load{name: name, up: make(chan struct{}), over: make(chan struct{}), acked: make([]chan struct{}, workers), failed: make(chan error, workers)}
	close(l.up)
	var all sync.WaitGroup
	for w := range workers {
		do, err := job.Begin(nodes[w%len(nodes)])
		if err != nil {
			return Figures{}, err
		}
		l.acked[w] = make(chan struct{}, 1)
		all.Go(func() { l.work(ctx, w, do) })
	}
	err := l.rounds(rounds, kill, start)
	close(l.over)
	all.Wait()
	if err != nil {
		return Figures{}, err
	}
	select {
	case err := <-l.failed:
		return Figures{}, err
	default:
	}
	done, err := job.Audit(ctx, nodes[0], l.said, l.unanswered)
	return Figures{len(l.said), l.unanswered, len(done)}, err
}

type load struct {
	name   string
	mu     sync.Mutex
	up     chan struct{} // open from before the server is killed until it is there again: who has no answer waits for that
	over   chan struct{}
	acked  []chan struct{} // of each worker: something was acknowledged
	failed chan error
	said   []string
	// unanswered is how many calls failed.
	unanswered int
}

func (l *load) work(ctx context.Context, w int, do crash.Work) {
	for i := 0; ; i++ {
		select {
		case <-l.over:
			return
		default:
		}
		call, cancel := context.WithTimeout(ctx, callTime)
		began := time.Now()
		err := do(call, fmt.Sprintf("w%d-%d", w, i), func(line string) {
			l.mu.Lock()
			l.said = append(l.said, line)
			l.mu.Unlock()
			select {
			case l.acked[w] <- struct{}{}:
			default:
			}
		})
		cancel()
		took := time.Since(began)
		switch {
		case err != nil && !strings.Contains(err.Error(), l.name):
			l.failed <- fmt.Errorf("outage: an error that does not name the store: %w", err)
			return
		case took > callTime+slack:
			l.failed <- fmt.Errorf("outage: a call took %v, its deadline was %v: %w", took, callTime, err)
			return
		case err != nil:
			l.mu.Lock()
			l.unanswered++
			up := l.up
			l.mu.Unlock()
			select { // so that what had no answer is little
			case <-up:
				wait(time.Millisecond)
			case <-l.over:
			}
		}
	}
}

// wait is for moments when nothing can be waited for.
func wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

func (l *load) rounds(rounds int, kill, start func()) error {
	for round := range rounds {
		if err := l.works(); err != nil {
			return fmt.Errorf("outage: round %d: %w", round, err)
		}
		wait(rand.N(100 * time.Millisecond))
		down := make(chan struct{})
		l.mu.Lock()
		l.up = down
		l.mu.Unlock()
		kill()
		start()
		close(down)
	}
	return l.works()
}

// works returns when every worker has something acknowledged that began after now.
func (l *load) works() error {
	for _, acked := range l.acked {
		select {
		case <-acked: // of before
		default:
		}
	}
	limit := time.NewTimer(backTime)
	defer limit.Stop()
	for w, acked := range l.acked {
		select {
		case <-acked:
		case err := <-l.failed:
			l.failed <- err
			return err
		case <-limit.C:
			return fmt.Errorf("worker %d has not found its way back in %v", w, backTime)
		}
	}
	return nil
}

var errTwice = errors.New("a write was carried out twice")
