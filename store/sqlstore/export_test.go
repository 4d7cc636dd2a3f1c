package sqlstore

import "time"

// Waiting is how many calls wait for the one under way, not sent yet.
func (s *Store) Waiting(aggregate string) int {
	s.lanes.mu.Lock()
	defer s.lanes.mu.Unlock()
	if l := s.lanes.busy[aggregate]; l != nil {
		return len(l.waiting)
	}
	return 0
}

// Idle reports whether no call is under way, and nothing is kept of those that were.
func (s *Store) Idle() bool {
	s.lanes.mu.Lock()
	defer s.lanes.mu.Unlock()
	return len(s.lanes.busy) == 0
}

// SetPatience changes how long a call waits for the one before it.
func (s *Store) SetPatience(d time.Duration) { s.patience = d }

// SetUnsorted changes how many rows may be missing in the index of the log.
func (g *Group) SetUnsorted(n int) { g.unsorted = n }
