package sqlite

import (
	"math"
	"slices"
	"sync"
)

// A queue is the requests that wait for the writer. The writer is woken once for all that it waits for, not for each that comes.
type queue struct {
	wake chan struct{} // has room for one

	mu     sync.Mutex
	closed bool
	all    []*request
	wanted int // the writer is woken when there are so many
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1), wanted: math.MaxInt} }

// add reports whether the request will be answered: not if the writer has gone.
func (q *queue) add(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.all = append(q.all, r)
	q.look()
	return true
}

// look wakes the writer when there are enough. The lock is held.
func (q *queue) look() {
	if len(q.all) >= q.wanted {
		q.wanted = math.MaxInt
		q.wake <- struct{}{}
	}
}

// remove takes out one whose caller does not wait any more, if it is still there.
func (q *queue) remove(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.all, r); i >= 0 {
		q.all = slices.Delete(q.all, i, i+1)
	}
}

// when returns what receives once there are n. Only the writer asks, and it counts from when it last did.
func (q *queue) when(n int) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-q.wake:
	default:
	}
	q.wanted = n
	q.look()
	return q.wake
}

// take takes out the first ones, at most n.
func (q *queue) take(n int) []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.all))
	first := slices.Clone(q.all[:n])
	q.all = slices.Delete(q.all, 0, n)
	return first
}

// close takes out all that are left, and lets no more in.
func (q *queue) close() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	left := q.all
	q.all = nil
	return left
}
