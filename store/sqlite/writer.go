package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

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
	ctx   context.Context
	state atomic.Int32
	run   func(tx store.Store) error // may be called again after a rollback
	err   error                      // of run
	done  chan error
}

// submit has the writer call f in a transaction, and waits until that is committed.
func submit[T any](ctx context.Context, s *Store, f func(context.Context, store.Store) (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if s.isClosed() {
		return none, s.closedError()
	}
	answer := new(T) // the writer's, until it is done
	r := &request{ctx: ctx, done: make(chan error, 1)}
	r.run = func(tx store.Store) (err error) {
		// Without the caller's context: a write that gave up in the middle would take its neighbours along.
		*answer, err = f(context.Background(), tx)
		return err
	}
	over := ctx.Done()
	select {
	case s.requests <- r:
	case <-over:
		return none, s.fail(fmt.Errorf("waiting to write: %w", ctx.Err()))
	case <-s.quit:
		return none, s.closedError()
	}
	select {
	case err := <-r.done:
		return finish(s, answer, err)
	case <-over:
		if r.state.CompareAndSwap(waiting, abandoned) {
			return none, s.fail(fmt.Errorf("waiting to write: %w", ctx.Err()))
		}
		return none, s.fail(fmt.Errorf("in the middle of a write, which may have happened: %w", ctx.Err()))
	case <-s.done:
		select {
		case err := <-r.done:
			return finish(s, answer, err)
		default:
			return none, s.closedError() // it came after the writer had gone
		}
	}
}

func finish[T any](s *Store, answer *T, err error) (T, error) {
	if err != nil {
		var none T
		return none, s.fail(err)
	}
	return *answer, nil
}

func (s *Store) closedError() error { return fmt.Errorf("sqlite: %s: %w", s.path, ErrClosed) }

// A writer is the goroutine that writes.
type writer struct {
	s    *Store
	conn *sql.Conn
	tx   *prepared
}

func (w *writer) run() {
	defer close(w.s.done)
	defer func() {
		_ = w.tx.close()
		_ = w.conn.Close()
	}()
	for {
		var first *request
		select {
		case <-w.s.quit:
			return
		case first = <-w.s.requests:
		}
		group := append(make([]*request, 0, maxGroup), first)
		// Who came while the last commit was on its way is there already. Nobody is waited for.
		for more := true; more && len(group) < maxGroup; {
			select {
			case r := <-w.s.requests:
				group = append(group, r)
			default:
				more = false
			}
		}
		w.write(group)
	}
}

// write commits a group, or if one of it fails, each of the others by itself.
func (w *writer) write(group []*request) {
	for _, r := range w.commit(group) {
		w.commit([]*request{r})
	}
}

// commit runs a group in one transaction and answers. If a statement failed, nothing was kept, and it returns those
// that are to be tried one by one.
func (w *writer) commit(group []*request) (again []*request) {
	ctx := context.Background()
	if err := w.begin(ctx); err != nil {
		for _, r := range group {
			r.answer(fmt.Errorf("begin: %w", err))
		}
		return nil
	}
	tx := sqlstore.Tx(w.tx, sqlstore.SQLite)
	var started []*request
	for _, r := range group {
		if !r.begin() {
			continue
		}
		started = append(started, r)
		if r.err = r.run(tx); r.err == nil || errors.Is(r.err, store.ErrInvalid) {
			continue
		}
		w.rollback(ctx)
		if len(group) == 1 {
			r.answer(r.err)
			return nil
		}
		return group
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

// begin reports whether the request is to be carried out: nobody has given it up. One that is tried again has begun before.
func (r *request) begin() bool {
	return r.state.CompareAndSwap(waiting, begun) || r.state.Load() == begun
}

func (r *request) answer(err error) { r.done <- err }

func (w *writer) begin(ctx context.Context) error {
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
		w.conn, w.tx = conn, &prepared{on: conn}
	}
}

// rollback leaves no transaction open: where SQLite cannot end it, another connection takes over.
func (w *writer) rollback(ctx context.Context) {
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

// statement returns nil for one that is not kept, or fails: run it as it is then, which tells.
func (p *prepared) statement(ctx context.Context, query string) *sql.Stmt {
	p.mu.RLock()
	st, full := p.stmts[query], len(p.stmts) >= maxPrepared
	p.mu.RUnlock()
	if st != nil || full {
		return st
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if st := p.stmts[query]; st != nil {
		return st
	}
	st, err := p.on.PrepareContext(ctx, query)
	if err != nil {
		return nil
	}
	if p.stmts == nil {
		p.stmts = make(map[string]*sql.Stmt)
	}
	p.stmts[query] = st
	return st
}

func (p *prepared) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if st := p.statement(ctx, query); st != nil {
		return st.ExecContext(ctx, args...)
	}
	return p.on.ExecContext(ctx, query, args...)
}

func (p *prepared) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if st := p.statement(ctx, query); st != nil {
		return st.QueryContext(ctx, args...)
	}
	return p.on.QueryContext(ctx, query, args...)
}

func (p *prepared) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if st := p.statement(ctx, query); st != nil {
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
