package app

import (
	"sync"
	"time"

	"github.com/behest-go/behest/authz/webhook"
)

const (
	defaultRemember = 65536
	// A copy of a delivery verifies for twice the tolerance at most: signed just ahead of our clock, sent just in time.
	rememberLeast = 2 * webhook.Tolerance
	rememberMost  = 24 * time.Hour
)

// A memory knows which ids are being handled and which were handled with success, so many and so long. Its zero
// value is ready.
type memory struct {
	mu    sync.Mutex
	known map[string]*seen
	done  []*seen // with success, in the order of it
}

type seen struct {
	id    string
	ended chan struct{} // closed when ok is settled
	ok    bool
	until time.Time
}

// begin makes the caller the one who handles id (mine, and it must call end), or returns who does or did.
func (m *memory) begin(id string, now time.Time) (s *seen, mine bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s = m.known[id]; s != nil && (!s.finished() || now.Before(s.until)) {
		return s, false
	}
	if m.known == nil {
		m.known = make(map[string]*seen)
	}
	s = &seen{id: id, ended: make(chan struct{})}
	m.known[id] = s
	return s, true
}

func (s *seen) finished() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// end settles what begin began: with success it is remembered until then, which is after now, as one of limit (1 or more)
// at most, else forgotten.
func (m *memory) end(s *seen, ok bool, now, until time.Time, limit int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer close(s.ended)
	if !ok {
		m.forget(s)
		return
	}
	s.ok, s.until = true, until
	m.done = append(m.done, s)
	for len(m.done) > limit || !now.Before(m.done[0].until) {
		m.forget(m.done[0])
		m.done[0] = nil
		m.done = m.done[1:]
	}
}

// forget leaves alone a later one of the same id.
func (m *memory) forget(s *seen) {
	if m.known[s.id] == s {
		delete(m.known, s.id)
	}
}

// rememberUntil covers the server's last try, which is before RedeemBy, and a copy of it.
func rememberUntil(now, redeemBy time.Time) time.Time {
	until := redeemBy.Add(rememberLeast)
	if least := now.Add(rememberLeast); until.Before(least) {
		return least
	}
	if most := now.Add(rememberMost); until.After(most) {
		return most
	}
	return until
}
