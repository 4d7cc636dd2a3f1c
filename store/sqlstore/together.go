package sqlstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Calls for one aggregate lock it, one after the other, each until it is on the server's disk: so a node sends one at a time, and while that is under
// way, the others gather and go together in the next statement. What lies in different aggregates never waits for each other here.

const (
	maxTogether = 64      // calls in one statement
	maxContent  = 1 << 20 // bytes of content in one statement, unless one call alone has more
	// aWhile is how long a call waits for the one before it to come back: that may be on a connection on which nothing ever comes. Then it goes alone, and those
	// who come later do not wait for that one.
	aWhile = time.Second
)

// lanes are those of the aggregates for which a call is under way.
type lanes struct {
	mu   sync.Mutex
	busy map[string]*lane
}

// A lane is a call under way and those that wait for its end.
type lane struct {
	aggregate string
	waiting   []*waiter // by lanes.mu
}

// A waiter is a call that waits for the one before it, and then for its answer.
type waiter struct {
	call
	ctx    context.Context
	with   *company      // once it is sent; by lanes.mu
	done   chan struct{} // closed when there is an answer
	answer answer
	err    error
}

// A company is what is sent in one statement. It does not end with the context of any one of them, but when nobody waits for it any more.
type company struct {
	waiters []*waiter
	ctx     context.Context
	cancel  context.CancelFunc
	left    int // how many still wait; by lanes.mu
}

// together is session.call that goes with others.
func (s *Store) together(ctx context.Context, aggregate string, c call) (answer, error) {
	s.lanes.mu.Lock()
	l := s.lanes.busy[aggregate]
	if l == nil {
		if s.lanes.busy == nil {
			s.lanes.busy = make(map[string]*lane)
		}
		l = &lane{aggregate: aggregate}
		s.lanes.busy[aggregate] = l
		s.lanes.mu.Unlock()
		defer s.next(l)
		return session{s.db, s.d}.call(ctx, &c)
	}
	w := &waiter{call: c, ctx: ctx, done: make(chan struct{})}
	l.waiting = append(l.waiting, w)
	s.lanes.mu.Unlock()
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	for {
		select {
		case <-w.done:
			return w.answer, w.err
		case <-ctx.Done():
			select {
			case <-w.done:
				return w.answer, w.err
			default:
			}
			if s.withdraw(l, w) {
				return answer{}, fmt.Errorf("it was not sent: %w", ctx.Err())
			}
			return answer{}, ctx.Err()
		case <-timer.C:
			if s.recall(l, w) {
				s.lanes.mu.Lock()
				s.lanes.leave(l)
				s.lanes.mu.Unlock()
				return session{s.db, s.d}.call(ctx, &w.call)
			}
		}
	}
}

// leave has those who come from now on take another lane. By mu.
func (all *lanes) leave(l *lane) {
	if all.busy[l.aggregate] == l {
		delete(all.busy, l.aggregate)
	}
}

// recall takes w out of those that wait to be sent. It reports false if it has been sent.
func (s *Store) recall(l *lane, w *waiter) bool {
	s.lanes.mu.Lock()
	defer s.lanes.mu.Unlock()
	if w.with != nil {
		return false
	}
	for i := range l.waiting {
		if l.waiting[i] == w {
			l.waiting = append(l.waiting[:i:i], l.waiting[i+1:]...)
			break
		}
	}
	return true
}

// withdraw says that nobody waits for w any more, and reports whether it was never sent.
func (s *Store) withdraw(l *lane, w *waiter) bool {
	if s.recall(l, w) {
		return true
	}
	s.lanes.mu.Lock()
	defer s.lanes.mu.Unlock()
	if w.with.left--; w.with.left == 0 {
		w.with.cancel()
	}
	return false
}

// next sends those that wait in the lane, if any do.
func (s *Store) next(l *lane) {
	// The caller who is done does not work for the others, and those may leave at any time. So this is a goroutine of its own, which ends when nobody
	// waits any more.
	if c := s.gather(l); c != nil {
		go func() {
			for ; c != nil; c = s.gather(l) {
				s.send(c)
			}
		}()
	}
}

// gather takes those that go in the next statement. If there are none, no call is under way any more.
func (s *Store) gather(l *lane) *company {
	s.lanes.mu.Lock()
	defer s.lanes.mu.Unlock()
	waiting := l.waiting
	if len(waiting) == 0 {
		s.lanes.leave(l)
		return nil
	}
	n, size := 1, len(waiting[0].content)
	for n < len(waiting) && n < maxTogether && size+len(waiting[n].content) <= maxContent {
		size += len(waiting[n].content)
		n++
	}
	c := &company{waiters: waiting[:n:n], left: n}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(waiting[0].ctx))
	for _, w := range c.waiters {
		w.with = c
	}
	l.waiting = waiting[n:]
	return c
}

// send sends them and gives each its answer.
func (s *Store) send(c *company) {
	defer c.cancel()
	in := session{s.db, s.d}
	err := in.calls(c.ctx, c.waiters)
	again := len(c.waiters) > 1 && rolledBack(err)
	for _, w := range c.waiters {
		if w.err = err; again {
			w.answer, w.err = in.call(w.ctx, &w.call) // what is wrong with one is no matter of the others, and who leaves, leaves alone
		}
		close(w.done)
	}
}

// rolledBack reports whether the server says that what a call holds is wrong, so that the statement did nothing. No record is, but a trigger or a constraint
// of the operator's may find so.
func rolledBack(err error) bool {
	var said interface{ SQLState() string } // as PostgreSQL's drivers have it
	if !errors.As(err, &said) || len(said.SQLState()) != 5 {
		return false
	}
	switch said.SQLState()[:2] {
	case "22", "23", "54", "P0": // data, constraint, limit, raised
		return true
	}
	return false
}

const callApplies = "SELECT w.i, behest_apply(w.at, w.is_use, w.numbers::bigint[], w.words::text[], w.content)" +
	" FROM unnest($1::timestamptz[], $2::boolean[], $3::text[], $4::text[], $5::bytea[]) WITH ORDINALITY AS w (at, is_use, numbers, words, content, i)"

// calls is call for all of them, in one statement: each is decided on what those before it have written.
func (s session) calls(ctx context.Context, waiters []*waiter) (err error) {
	if len(waiters) == 1 {
		w := waiters[0]
		w.answer, err = s.call(ctx, &w.call)
		return err
	}
	var at, isUse, numbers, words, content array
	var bytes []byte
	for _, w := range waiters {
		at.add(w.at)
		if w.isUse {
			isUse.add("t")
		} else {
			isUse.add("f")
		}
		numbers.add(w.numbers)
		words.add(w.words)
		bytes = hex.AppendEncode(append(bytes[:0], `\x`...), w.content)
		content.add(string(bytes))
	}
	x, release, err := s.once(ctx)
	if err != nil {
		return err
	}
	defer release()
	rows, err := x.QueryContext(ctx, callApplies, at.String(), isUse.String(), numbers.String(), words.String(), content.String())
	if err != nil {
		return err
	}
	defer rows.Close()
	answered := 0
	for rows.Next() {
		var i int
		var a answer
		if err := rows.Scan(&i, &a); err != nil {
			return err
		}
		if i < 1 || i > len(waiters) {
			return fmt.Errorf("behest_apply answers call %d of %d", i, len(waiters))
		}
		waiters[i-1].answer = a
		answered++
	}
	// What was written is committed only when the last answer has been read.
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if answered != len(waiters) {
		return fmt.Errorf("behest_apply answers %d calls of %d", answered, len(waiters))
	}
	return nil
}
