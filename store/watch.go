package store

import "sync/atomic"

// A Watcher is a [Store] of one process alone, which can tell at once that something was written: what others find out
// by looking again and again. Only a store that no other process can write to may be one. [Memory] is.
type Watcher interface {
	// Watch returns a function that returns a number: another one after every Apply to the aggregate that wrote
	// something, from before that Apply has returned. It costs next to nothing to call, from many goroutines at once.
	Watch(aggregate string) (moved func() uint64)
}

var _ Watcher = (*Memory)(nil)

// Watch implements [Watcher].
func (m *Memory) Watch(aggregate string) (moved func() uint64) {
	s := m.shardOf(aggregate)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.watched[aggregate]
	if n == nil {
		if s.watched == nil {
			s.watched = map[string]*atomic.Uint64{}
		}
		n = new(atomic.Uint64)
		s.watched[aggregate] = n
	}
	return n.Load
}

// moved is to be called after a write, with the shard locked. Nearly all shards have nothing that is watched.
func (s *shard) moved(aggregate string) {
	if len(s.watched) > 0 {
		if n := s.watched[aggregate]; n != nil {
			n.Add(1)
		}
	}
}
