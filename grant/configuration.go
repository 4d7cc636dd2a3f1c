package grant

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/behest-go/behest/store"
)

const (
	// lease is how long Change waits, and so the longest time for which a node goes by what it saw before.
	lease = 3 * time.Second
	// fresh is how long a node goes by what it saw: less than the lease, because clocks do not run at one speed.
	fresh = lease - 100*time.Millisecond
	// ahead is how far a call may be behind the look that it goes by: it may have read its clock, and then waited for a processor.
	ahead = time.Second
	// longestLook is shorter than fresh: who waits for another's look does not get what is over already.
	longestLook = 2 * time.Second
)

// settings are what a configuration comes to. They are made once and never changed, so that a call goes by one
// configuration from its beginning to its end.
type settings struct {
	config    Config // only its Apps and Triggers
	apps      map[string]*registered
	idle      []string        // suspended apps
	suspended map[string]bool // triggers, also those that were removed
	triggers  index           // those that fire: neither they nor their apps are suspended
}

// A registered app is an App with what has become of it.
type registered struct {
	App
	costs []int64 // of its Actions, in their order
	since int64   // microseconds: what was granted until then, under a registration that was removed, is over; zero: there was none
}

func (a *registered) before(issued int64) bool { return a.since != 0 && issued <= a.since }

// cost is what the action costs a token; false: the app is not registered for it.
func (a *registered) cost(action string) (int64, bool) {
	for i, s := range a.Actions {
		if s == action {
			return a.costs[i], true
		}
	}
	return 0, false
}

// gone is the error for what an app may do no longer, whatever it was granted; nil if it may.
func (s *settings) gone(app, trigger string, issued int64) error {
	return s.goneApp(s.apps[app], app, trigger, issued)
}

func (s *settings) goneApp(a *registered, app, trigger string, issued int64) error {
	switch {
	case a == nil:
		return fmt.Errorf("%w: the app %s is no longer registered", ErrRevoked, app)
	case a.Suspended:
		return fmt.Errorf("%w: the app %s is suspended", ErrRevoked, app)
	case a.before(issued):
		return fmt.Errorf("%w: the app %s was removed since", ErrRevoked, app)
	case s.suspended[trigger]:
		return fmt.Errorf("%w: the trigger %s is suspended", ErrRevoked, trigger)
	}
	return nil
}

// A look is what a node saw in the store, and when.
type look struct {
	*settings
	stored
	at    int64     // microseconds by the engine's clock, before the store was asked
	began time.Time // the same, by the monotonic clock as well, if it has one
	moved uint64    // what the store's counter said before
	turn  uint64    // a look with a higher one began later; zero: nobody has looked yet
	made  bool      // by a change of this node, after which there may have been another
}

// A watch is how an engine follows its configuration.
type watch struct {
	store store.Store // that of Config, also for engines of In: a transaction sees the past
	// moved is for a store of this process alone, which knows of each change at once, so that time does not matter; nil:
	// looks every now and then.
	moved   func() uint64
	current atomic.Pointer[look]

	mu      sync.Mutex
	turns   uint64
	looking *looking // the look that is under way, if one is
}

type looking struct {
	done     chan struct{}
	found    *look
	err      error
	deserted bool // who looked has gone away
}

// settings returns what to go by now: at nearly all times, what the last look has found. When that is too long ago, or
// this is the first call, it looks again; without an answer there is nothing to go by, and nothing is let through.
func (e *engine) settings(ctx context.Context, now time.Time) (*settings, error) {
	l := e.watch.current.Load()
	if e.watch.moved == nil && e.recent(l, now) || e.watch.moved != nil && l.turn > 0 && !e.hasMoved(l) {
		return l.settings, nil
	}
	return e.lookAgain(ctx)
}

// settingsNow is for a call that needs no clock otherwise: with a store of this process alone, none is read.
func (e *engine) settingsNow(ctx context.Context) (*settings, error) {
	if e.watch.moved != nil {
		return e.settings(ctx, time.Time{})
	}
	return e.settings(ctx, e.now())
}

// recent asks both clocks: the one can be put back, and the other stands still while the machine sleeps.
func (e *engine) recent(l *look, now time.Time) bool {
	return uint64(now.UnixMicro()-l.at+ahead.Microseconds()) < uint64((fresh+ahead).Microseconds()) && e.clock().Sub(l.began) < fresh
}

func (e *engine) hasMoved(l *look) bool { return e.watch.moved != nil && e.watch.moved() != l.moved }

// known is what the last look has found, however long ago, or else what Config says: for what is not authority.
func (e *engine) known() *settings { return e.watch.current.Load().settings }

// lookAgain looks once for all that wait for it.
func (e *engine) lookAgain(ctx context.Context) (*settings, error) {
	w := &e.watch
	for {
		w.mu.Lock()
		l := w.looking
		mine := l == nil
		if mine {
			l = &looking{done: make(chan struct{})}
			w.looking = l
		}
		w.mu.Unlock()
		if mine {
			e.lookFor(ctx, l)
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("grant: the configuration: %w", ctx.Err())
		}
		switch {
		case l.err == nil && e.hasMoved(l.found): // since then
		case l.err == nil:
			return l.found.settings, nil
		case mine || !l.deserted:
			return nil, l.err
		}
	}
}

func (e *engine) lookFor(ctx context.Context, l *looking) {
	l.err, l.deserted = errors.New("grant: the configuration: the look broke off"), true // if the store panics
	defer func() {
		e.watch.mu.Lock()
		e.watch.looking = nil
		e.watch.mu.Unlock()
		close(l.done)
	}()
	bounded, cancel := context.WithTimeout(ctx, longestLook)
	defer cancel()
	l.found, l.err = e.look(bounded)
	l.deserted = l.err != nil && ctx.Err() != nil
}

// Look asks the store whether the configuration has changed: one Get of two records, if it has not. Call it about once
// a second, so that no other call has to: each goes by what was found in the last 3 s, and else looks itself. An
// error means that nobody knows what holds; when 3 s have passed without an answer, all calls that need to know fail.
func (e *Engine) Look(ctx context.Context) error {
	_, err := e.lookAgain(ctx)
	return err
}

// Configuration returns what the engine goes by, a Config of which only Apps and Triggers are set: those of its own
// Config with the changes that lie in the store laid over them, by ID, as found in the last 3 s, and else now. It is
// shared, and not to be changed. As long as there is no other, it is the same pointer.
func (e *Engine) Configuration(ctx context.Context) (*Config, error) {
	s, err := e.settings(ctx, e.now())
	if err != nil {
		return nil, err
	}
	return &s.config, nil
}

func (e *engine) look(ctx context.Context) (*look, error) {
	l := e.begin()
	last := e.watch.current.Load()
	var err error
	if l.stored, err = e.fetch(ctx, last.stored); err != nil {
		return nil, err
	}
	if l.settings = last.settings; l.state != last.state {
		if l.settings, err = e.build(l.state); err != nil {
			// Not one of our errors: it is no fault of the call.
			return nil, fmt.Errorf("grant: change %d of the configuration does not go with this node's Config: %v", l.state.Number, err)
		}
	}
	if e.watch.moved == nil && !e.recent(l, e.now()) {
		return nil, errors.New("grant: the configuration: the store's answer came too late")
	}
	e.install(l)
	return l, nil
}

// begin is to be called before the store is asked.
func (e *engine) begin() *look {
	w := &e.watch
	w.mu.Lock()
	w.turns++
	l := &look{turn: w.turns}
	w.mu.Unlock()
	if w.moved != nil {
		l.moved = w.moved()
	}
	l.at, l.began = e.now().UnixMicro(), e.clock()
	return l
}

// install never puts back what an earlier look has seen.
func (e *engine) install(l *look) {
	w := &e.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := w.current.Load(); l.turn > now.turn && !(l.made && now.state.Number >= l.state.Number) {
		w.current.Store(l)
	}
}

// follow begins with what Config says, of which the store has not been asked yet.
func (e *engine) follow(s store.Store) error {
	e.watch.store = s
	if w, ok := s.(store.Watcher); ok {
		e.watch.moved = w.Watch(configAggregate)
	}
	nothing := new(overlay)
	set, err := e.build(nothing)
	if err == nil {
		e.watch.current.Store(&look{settings: set, stored: stored{state: nothing}, at: math.MinInt64 / 2})
	}
	return err
}

// lay lays the changes over what Config says: the apps and triggers in the order of Config, then by ID.
func (e *engine) lay(o *overlay) ([]registered, []Trigger) {
	apps := make([]registered, 0, len(e.baseApps)+len(o.Apps))
	laid := map[string]bool{}
	add := func(a App, since int64) {
		if suspended, said := o.SuspendedApps[a.ID]; said {
			a.Suspended = suspended
		}
		apps = append(apps, registered{App: a, since: since})
	}
	for _, a := range e.baseApps {
		over, ok := o.Apps[a.ID]
		switch _, gone := o.GoneApps[a.ID]; {
		case ok && !laid[a.ID]:
			add(over.app(), over.Since)
			laid[a.ID] = true
		case !ok && !gone:
			add(a, 0)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(o.Apps)) {
		if !laid[id] {
			add(o.Apps[id].app(), o.Apps[id].Since)
		}
	}
	triggers := make([]Trigger, 0, len(e.baseTriggers)+len(o.Triggers))
	clear(laid)
	for _, t := range e.baseTriggers {
		over, ok := o.Triggers[t.ID]
		switch _, gone := o.GoneTriggers[t.ID]; {
		case ok && !laid[t.ID]:
			triggers = append(triggers, over)
			laid[t.ID] = true
		case !ok && !gone:
			triggers = append(triggers, t)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(o.Triggers)) {
		if !laid[id] {
			triggers = append(triggers, o.Triggers[id])
		}
	}
	for i := range triggers {
		if suspended, said := o.SuspendedTriggers[triggers[i].ID]; said {
			triggers[i].Suspended = suspended
		}
	}
	return apps, triggers
}

// build checks all of it and reports every fault at once; each wraps ErrInvalid.
func (e *engine) build(o *overlay) (*settings, error) {
	apps, triggers := e.lay(o)
	s := &settings{apps: make(map[string]*registered, len(apps)), suspended: map[string]bool{}}
	for id, suspended := range o.SuspendedTriggers {
		if suspended {
			s.suspended[id] = true
		}
	}
	s.config.Triggers = triggers
	var faults []error
	for i := range apps {
		a := &apps[i]
		s.config.Apps = append(s.config.Apps, a.App)
		if a.Suspended {
			s.idle = append(s.idle, a.ID)
		}
		if err := a.check(e.catalog); err != nil {
			faults = append(faults, err)
		}
		if s.apps[a.ID] != nil {
			faults = append(faults, invalid("app %.80q is there twice", a.ID))
		}
		for _, action := range a.Actions {
			cost, _ := e.catalog.Cost(action)
			a.costs = append(a.costs, int64(cost))
		}
		s.apps[a.ID] = a
	}
	ready, ids := make([]*trigger, 0, len(triggers)), make(map[string]bool, len(triggers))
	for _, t := range triggers {
		p, err := t.prepare(s.apps, e.catalog)
		if err != nil {
			faults = append(faults, err)
		}
		if ids[p.ID] {
			faults = append(faults, invalid("trigger %.80q is there twice: give them IDs", p.ID))
		}
		ids[p.ID] = true
		if delete(s.suspended, p.ID); p.Suspended {
			s.suspended[p.ID] = true
		}
		if a := s.apps[p.App]; a != nil && !a.Suspended && !p.Suspended {
			ready = append(ready, p)
		}
	}
	if e.check != nil {
		if err := e.check(s.config.Apps, s.config.Triggers); err != nil {
			faults = append(faults, checkError{err})
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	s.triggers = newIndex(ready)
	return s, nil
}

// A checkError is what Config.Check said: a fault in the configuration like ours, in its own words.
type checkError struct{ error }

// Is implements the interface of errors.Is.
func (checkError) Is(target error) bool { return target == ErrInvalid }

// Unwrap implements the interface of errors.As and errors.Is.
func (c checkError) Unwrap() error { return c.error }

// named is the trigger with its ID.
func (t Trigger) named() Trigger {
	if t.ID == "" {
		t.ID = t.App + ":" + string(t.On) + ":" + t.In
	}
	return t
}

// copied is the trigger with no memory shared.
func (t Trigger) copied() Trigger {
	t.Allow, t.Match.Keywords, t.Delegates = slices.Clone(t.Allow), slices.Clone(t.Match.Keywords), slices.Clone(t.Delegates)
	return t
}

// copied is the app with its name, and no memory shared.
func (a App) copied() App {
	if a.Name == "" {
		a.Name = a.ID
	}
	a.Actions, a.Private = slices.Clone(a.Actions), maps.Clone(a.Private)
	return a
}

// storable is what does not change on its way through JSON.
func (t *Trigger) storable() bool {
	for _, s := range []string{t.App, string(t.On), t.In, t.At, t.Match.Command, t.Match.LinkPrefix, t.Match.Target, strings.Join(t.Allow, ""), strings.Join(t.Match.Keywords, ""), strings.Join(t.Delegates, "")} {
		if !utf8.ValidString(s) {
			return false
		}
	}
	return true
}
