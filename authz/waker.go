package authz

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/behest-go/behest/grant"
)

// A Waker hears of grants that other nodes issue, so that nobody has to look for them every 250 ms. It only saves
// time: what it misses is found by looking, every 5 seconds while it listens (sooner where codes live for less than 20
// seconds), and every 250 ms while it does not.
//
// A redisstore.Store is one, by pub/sub; sqlstore.NewListener makes one for PostgreSQL, by NOTIFY. Within one process Emit
// and Decide wake by themselves. On a store that other processes share and that cannot tell, such as SQLite, looking
// is all there is.
type Waker interface {
	// Listen calls woke with "" once it listens, and then for each delivery that becomes due on any node, this one
	// included, with the app that it is for, or with "" where it does not know. It returns when ctx is done or when
	// it cannot listen any more, and is called again after a pause. woke does not block.
	Listen(ctx context.Context, woke func(app string)) error
}

const (
	slowLook     = 5 * time.Second
	listenAgain  = 250 * time.Millisecond // the first pause before another Listen
	listenSeldom = 5 * time.Second        // and the longest
)

// listen listens until ctx is done.
func listen(ctx context.Context, w Waker, to *wakeup, log *slog.Logger) {
	away := &outage{what: "waker", log: log}
	var wg sync.WaitGroup
	for pause := listenAgain; ; pause = min(2*pause, listenSeldom) {
		lasts, over := context.WithCancel(ctx)
		err := w.Listen(ctx, func(app string) {
			if to.listen(true) {
				// It is well when it has been for a while: this is asked once, not again and again.
				wg.Go(func() {
					select {
					case <-lasts.Done():
					case <-time.After(outageGap):
						away.note(ctx, nil)
					}
				})
			}
			to.wake(app)
		})
		over()
		wg.Wait()
		if to.listen(false) {
			pause = listenAgain
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it does not listen any more")
		}
		away.note(ctx, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// wakeup is a broadcast: who waits holds the channel that the next wake closes.
type wakeup struct {
	mu        sync.Mutex
	slow      time.Duration            // how often to look while a Waker listens
	all       chan struct{}            // of who waits for any app
	apps      map[string]chan struct{} // of who waits for one
	listening bool
}

func newWakeup() *wakeup {
	return &wakeup{slow: slowLook, all: make(chan struct{}), apps: map[string]chan struct{}{}}
}

// pace sees to it that a code lives long enough for some looks, if the Waker has missed it.
func (w *wakeup) pace(triggers []grant.Trigger) {
	slow := slowLook
	for i := range triggers {
		if within := triggers[i].RedeemWithin; within > 0 {
			slow = max(min(slow, within/4), lookInterval)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow = slow
}

// wait returns a channel that is closed when there may be something new for the app, or for any if it is empty, and
// for how long to wait before looking all the same.
func (w *wakeup) wait(app string) (news <-chan struct{}, look time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	look = lookInterval
	if w.listening {
		look = w.slow
	}
	if app == "" {
		return w.all, look
	}
	ch := w.apps[app]
	if ch == nil {
		ch = make(chan struct{})
		w.apps[app] = ch
	}
	return ch, look
}

// wake wakes who waits for the app and who waits for any; without an app, everybody.
func (w *wakeup) wake(app string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakeLocked(app)
}

func (w *wakeup) wakeLocked(app string) {
	close(w.all)
	w.all = make(chan struct{})
	if app == "" {
		for _, ch := range w.apps {
			close(ch)
		}
		clear(w.apps)
		return
	}
	if ch := w.apps[app]; ch != nil {
		close(ch)
		delete(w.apps, app)
	}
}

// listen notes whether a Waker listens, and reports whether that is a change. Who waits learns for how long to wait now.
func (w *wakeup) listen(yes bool) (changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listening == yes {
		return false
	}
	w.listening = yes
	w.wakeLocked("")
	return true
}

// moments are times at which something will be due, in order, to a quarter of a second: few, however much it is.
type moments []time.Time

func (m *moments) add(at time.Time) {
	at = at.Truncate(lookInterval).Add(lookInterval)
	if i, there := slices.BinarySearchFunc(*m, at, time.Time.Compare); !there {
		*m = slices.Insert(*m, i, at)
	}
}

// next is how long it is to the next one, at most look. Those that have come are forgotten.
func (m *moments) next(now time.Time, look time.Duration) time.Duration {
	i := 0
	for i < len(*m) && !(*m)[i].After(now) {
		i++
	}
	if *m = slices.Delete(*m, 0, i); len(*m) > 0 {
		look = min(look, (*m)[0].Sub(now))
	}
	return look
}
