package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// What has become of a request. Its caller and the writer agree on it by compare-and-swap.
const (
	waiting = iota
	begun
	abandoned
)

// A request is a write that waits for the writer.
type request struct {
	state atomic.Int32
	call  *sqlstore.Call             // an Apply
	run   func(tx store.Store) error // or another write; may be called again after a rollback
	err   error                      // of run
	done  chan error
}

// requests are those that no caller and no writer has. An Apply takes one, since it is much memory for a short time.
var requests = sync.Pool{New: func() any { return &request{call: new(sqlstore.Call), done: make(chan error, 1)} }}

// submit has the writer carry out r in a transaction, and waits until that is committed. After an error, what r holds may be the writer's still.
func (s *Store) submit(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.isClosed() {
		return s.closedError()
	}
	if !s.queue.add(r) {
		return s.closedError()
	}
	over := ctx.Done()
	if over == nil {
		return s.fail(<-r.done)
	}
	select {
	case err := <-r.done:
		return s.fail(err)
	case <-over:
		if r.state.CompareAndSwap(waiting, abandoned) {
			s.queue.remove(r)
			return s.fail(fmt.Errorf("waiting to write: %w", ctx.Err()))
		}
		return s.fail(fmt.Errorf("in the middle of a write, which may have happened: %w", ctx.Err()))
	}
}

// other is submit for a write that is no Apply.
func other[T any](ctx context.Context, s *Store, f func(context.Context, store.Store) (T, error)) (T, error) {
	answer := new(T) // the writer's, until it is done
	err := s.submit(ctx, &request{done: make(chan error, 1), run: func(tx store.Store) (err error) {
		// Without the caller's context: a write that gave up in the middle would take its neighbours along.
		*answer, err = f(context.Background(), tx)
		return err
	}})
	if err != nil {
		var none T
		return none, err
	}
	return *answer, nil
}

func (s *Store) closedError() error { return fmt.Errorf("sqlite: %s: %w", s.path, ErrClosed) }

// A writer is the goroutine that writes.
type writer struct {
	s     *Store
	conn  *sql.Conn
	tx    *prepared
	group *sqlstore.Group
	hoped int           // about how many there were in the largest of the last groups
	took  time.Duration // how long the last one took
	// others is when another process was last found to have written.
	others time.Time
	// tooLong is the size of the log from which on it is moved into the file even if readers have to be waited for.
	tooLong int64
}

func newWriter(s *Store, conn *sql.Conn) *writer {
	w := &writer{s: s, tooLong: maxLog}
	w.use(conn)
	return w
}

func (w *writer) use(conn *sql.Conn) {
	w.conn, w.tx = conn, &prepared{on: conn}
	w.group = sqlstore.NewGroup(w.tx)
	w.setBusy(context.Background(), retryBegin)
}

func (w *writer) run() {
	defer close(w.s.done)
	defer func() {
		for _, r := range w.s.queue.close() {
			r.answer(w.s.closedError())
		}
		_ = w.tx.close()
		_ = w.conn.Close()
	}()
	for {
		group, over := w.gather()
		switch {
		case over:
			return
		case len(group) == 0:
			continue // who asked has given up
		}
		began := time.Now()
		w.write(group)
		w.took = time.Since(began)
		w.shorten()
	}
}

// gather waits for a request, and then for those whom the last answers have woken, if they come back soon: it is the commit that costs, so a part of what the
// last one took is spent on waiting for as many as there were lately. Other processes that write get their turn in this time. It is over when the store is closed.
func (w *writer) gather() (group []*request, over bool) {
	select {
	case <-w.s.quit:
		return nil, true
	case <-w.s.queue.when(1):
	}
	if w.s.isClosed() {
		return nil, true
	}
	hoped, longest := w.hoped, min(w.took/4, longestWait)
	if time.Since(w.others) < time.Second { // then it is politeness
		hoped, longest = maxGroup, longestWait
	}
	if hoped > 1 {
		runtime.Gosched()
		enough := time.NewTimer(longest)
		select {
		case <-w.s.queue.when(hoped):
		case <-enough.C:
		}
		enough.Stop()
	}
	group = w.s.queue.take(maxGroup)
	w.hoped = max(len(group), w.hoped-1-w.hoped/16)
	return group, false
}

// shorten moves a log into the file that has become too long because there was always somebody reading: it waits for those who read, while new ones do
// without the log.
func (w *writer) shorten() {
	info, err := os.Stat(w.s.file + "-wal")
	if err != nil || info.Size() < w.tooLong {
		return
	}
	ctx := context.Background()
	w.setBusy(ctx, longestShorten)
	var busy, frames, moved int
	err = w.tx.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &moved)
	w.setBusy(ctx, retryBegin)
	if w.tooLong = maxLog; err != nil || busy != 0 {
		w.tooLong = info.Size() + maxLog/2 // later again
	}
}

// setBusy says for how long statements wait for other processes.
func (w *writer) setBusy(ctx context.Context, timeout time.Duration) {
	_, _ = w.conn.ExecContext(ctx, fmt.Sprint("PRAGMA busy_timeout = ", timeout.Milliseconds()))
}

// write commits a group, or if one of it fails, each of the others by itself.
func (w *writer) write(group []*request) {
	for _, r := range w.twice(group, len(group) == 1) {
		w.twice([]*request{r}, true)
	}
}

// twice is commit, if need be at the second try: what was remembered for the first may not be so any more.
func (w *writer) twice(group []*request, last bool) (again []*request) {
	if group = w.commit(group, false); len(group) > 0 {
		group = w.commit(group, last)
	}
	return group
}

// commit runs a group in one transaction and answers. If a statement failed, nothing was kept, and it returns those
// that are to be tried again, unless this is the last try.
func (w *writer) commit(group []*request, last bool) (again []*request) {
	ctx := context.Background()
	if err := w.begin(ctx); err != nil {
		for _, r := range group {
			r.answer(fmt.Errorf("begin: %w", err))
		}
		return nil
	}
	started := make([]*request, 0, len(group))
	for _, r := range group {
		if r.begin() {
			started = append(started, r)
		}
	}
	if err := w.carryOut(ctx, started); err != nil {
		w.rollback(ctx)
		if !last {
			return started
		}
		for _, r := range started {
			r.answer(err)
		}
		return nil
	}
	if _, err := w.tx.ExecContext(ctx, "COMMIT"); err != nil {
		w.rollback(ctx)
		for _, r := range started {
			r.answer(fmt.Errorf("commit: %w", err))
		}
		return nil
	}
	for _, r := range started {
		r.answer(r.err)
	}
	return nil
}

// carryOut does what is asked for, in the order in which it was. Applies that follow one another are done together.
func (w *writer) carryOut(ctx context.Context, group []*request) error {
	others, err := w.group.Start(ctx)
	if err != nil {
		return err
	}
	if others {
		w.others = time.Now()
	}
	tx := sqlstore.Tx(w.tx, sqlstore.SQLite)
	calls := make([]*sqlstore.Call, 0, len(group))
	for i, r := range group {
		if r.call != nil {
			calls = append(calls, r.call)
			if i < len(group)-1 && group[i+1].call != nil {
				continue
			}
			if err := w.group.Run(ctx, calls); err != nil {
				return err
			}
			calls = calls[:0]
			continue
		}
		if r.err = r.run(tx); r.err != nil && !errors.Is(r.err, store.ErrInvalid) {
			return r.err
		}
		w.group.Forget()
	}
	for _, r := range group {
		if r.call != nil {
			r.err = r.call.Err
		}
	}
	return nil
}

// begin reports whether the request is to be carried out: nobody has given it up. One that is tried again has begun before.
func (r *request) begin() bool {
	return r.state.CompareAndSwap(waiting, begun) || r.state.Load() == begun
}

func (r *request) answer(err error) { r.done <- err }

// begin waits until no other process writes. SQLite by itself would look less and less often, and be overtaken by those who come again and again.
func (w *writer) begin(ctx context.Context) error {
	for began := time.Now(); ; {
		err := w.tryBegin(ctx)
		switch {
		case !isBusy(err) || time.Since(began) > busyTimeout:
			return err
		case w.s.isClosed():
			return fmt.Errorf("another process writes: %w", err)
		}
	}
}

func (w *writer) tryBegin(ctx context.Context) error {
	_, err := w.tx.ExecContext(ctx, "BEGIN IMMEDIATE")
	if errors.Is(err, sql.ErrConnDone) || errors.Is(err, driver.ErrBadConn) {
		w.reconnect(ctx)
		_, err = w.tx.ExecContext(ctx, "BEGIN IMMEDIATE")
	}
	return err
}

func (w *writer) reconnect(ctx context.Context) {
	_ = w.tx.close()
	_ = w.conn.Raw(func(any) error { return driver.ErrBadConn }) // so that it is closed, not given back
	_ = w.conn.Close()
	if conn, err := w.s.write.Conn(ctx); err == nil {
		w.use(conn)
	}
}

// rollback leaves no transaction open: where SQLite cannot end it, another connection takes over.
func (w *writer) rollback(ctx context.Context) {
	w.group.Forget()
	_, err := w.tx.ExecContext(ctx, "ROLLBACK")
	if err == nil {
		return
	}
	// SQLite rolls back by itself when the disk is full and the like: then there is none to end.
	if err := w.begin(ctx); err == nil {
		if _, err := w.tx.ExecContext(ctx, "ROLLBACK"); err == nil {
			return
		}
	}
	w.reconnect(ctx)
}

// prepared runs statements that stay prepared, since most of them come again and again.
type prepared struct {
	on interface {
		sqlstore.Execer
		PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	}
	mu    sync.RWMutex
	stmts map[string]*sql.Stmt
}

// statement returns nil for one that is not kept: run it as it is then. What cannot be prepared must not run: after an error SQLite may have rolled back by itself,
// and would commit it at once.
func (p *prepared) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	p.mu.RLock()
	st, full := p.stmts[query], len(p.stmts) >= maxPrepared
	p.mu.RUnlock()
	if st != nil || full {
		return st, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if st := p.stmts[query]; st != nil {
		return st, nil
	}
	st, err := p.on.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if p.stmts == nil {
		p.stmts = make(map[string]*sql.Stmt)
	}
	p.stmts[query] = st
	return st, nil
}

func (p *prepared) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	st, err := p.statement(ctx, query)
	switch {
	case err != nil:
		return nil, err
	case st == nil:
		return p.on.ExecContext(ctx, query, args...)
	}
	return st.ExecContext(ctx, args...)
}

func (p *prepared) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	st, err := p.statement(ctx, query)
	switch {
	case err != nil:
		return nil, err
	case st == nil:
		return p.on.QueryContext(ctx, query, args...)
	}
	return st.QueryContext(ctx, args...)
}

func (p *prepared) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if st, _ := p.statement(ctx, query); st != nil { // else it fails once more, or reads: a row cannot be made of an error
		return st.QueryRowContext(ctx, args...)
	}
	return p.on.QueryRowContext(ctx, query, args...)
}

func (p *prepared) close() (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, st := range p.stmts {
		err = errors.Join(err, st.Close())
	}
	p.stmts = nil
	return err
}
