package grant

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/behest-go/behest/store"
)

// Change changes apps and triggers on all nodes and returns the number of the change, when it holds on every one of
// them: with a store of several processes after 3 s, with one of this process alone (a store.Watcher) at once. A call
// that was under way by then may still end as it began.
//
// Edit is given what the engine goes by now, a Config of which only Apps and Triggers are set, and changes it as it
// likes; its error is returned as it is, beside other faults if it wraps [ErrInvalid]. The whole that comes of it is
// checked as at the start, with Config.Check, and every fault reported at once; each wraps ErrInvalid, and nothing was
// written. The change is one write. Of two at
// once, one is made first, and edit is called again for the other. Any other error says that the change may have been
// made, or, with a number, that it was and ctx ended before it was known to hold everywhere. A change has at most
// 1 MiB, as JSON and sealed; a configuration may have any number of them. By is who makes the change, at most 256 bytes.
//
// To set Suspended suspends until it is cleared: an app gets nothing more, a trigger grants nothing more; their tokens
// and codes are refused as revoked, and work again afterwards if they have not expired. To remove an app, which takes
// removing its triggers, ends it for good: what it was granted stays dead also when it is added again. To remove or
// edit a trigger touches nothing that it has granted, which lives on, or stays suspended if it was.
//
// What the store says goes before Config from then on, for each app and trigger that a change has edited, also when the
// process starts again with another Config: an app that was removed stays so until a change adds it (one that was not
// in this node's Config for nine days at least). One that was only suspended is still Config's. Nodes may have different Configs, if the changes go with each: a node whose Config they
// do not go with lets nothing through.
func (e *Engine) Change(ctx context.Context, by string, edit func(*Config) error) (uint64, error) {
	for range maxTurns {
		l, made, err := e.change(ctx, by, edit)
		switch {
		case err != nil:
			return 0, err
		case !made: // another was quicker
			continue
		}
		return l.state.Number, e.spread(ctx, l)
	}
	return 0, errors.New("grant: the configuration changes faster than it can be changed")
}

const maxTurns = 64

// change is one turn.
func (e *engine) change(ctx context.Context, by string, edit func(*Config) error) (l *look, made bool, err error) {
	w := &e.watch
	var moved uint64
	if w.moved != nil {
		moved = w.moved()
	}
	bounded, cancel := context.WithTimeout(ctx, longestLook)
	now, err := e.fetch(bounded, w.current.Load().stored)
	cancel()
	if err != nil {
		return nil, false, err
	}
	apps, triggers := e.lay(now.state)
	edited := &Config{}
	for i := range apps {
		edited.Apps = append(edited.Apps, apps[i].copied())
	}
	for _, t := range triggers {
		edited.Triggers = append(edited.Triggers, t.copied())
	}
	wrong := edit(edited)
	if wrong != nil && !errors.Is(wrong, ErrInvalid) {
		return nil, false, wrong
	}
	d, faults := e.difference(now.state, apps, triggers, edited, by)
	next := now.state.with(d)
	set, err := e.build(next)
	if err = errors.Join(wrong, faults, err); err != nil {
		return nil, false, err
	}
	head := headData{Number: d.Number, ID: d.ID, Snapshot: now.snapshot, Chunks: now.chunks}
	sealedHead, err := e.keys.sealConfig(headID, head)
	if err != nil {
		return nil, false, err
	}
	sealed, err := e.keys.sealConfig(changeID(d.Number), d)
	if err != nil {
		return nil, false, err
	}
	if len(sealed) > store.MaxData {
		return nil, false, invalid("the change has %d bytes, at most %d: make it in parts", len(sealed), store.MaxData)
	}
	at, began := e.now(), e.clock()
	out, err := w.store.Apply(ctx, at, []store.Op{
		store.Put(store.Record{Kind: kindConfig, ID: headID, Version: now.version, Data: sealedHead}),
		store.Put(store.Record{Kind: kindConfig, ID: changeID(d.Number), Data: sealed}),
	})
	if err != nil && !e.happened(ctx, d) {
		return nil, false, fmt.Errorf("grant: changing the configuration: %w", err)
	}
	if err == nil && !out.Applied() {
		return nil, false, nil
	}
	// Looks that began before the answer may not have seen it: this goes before theirs.
	l = e.begin()
	l.settings, l.at, l.began, l.moved, l.made = set, at.UnixMicro(), began, moved, true
	l.stored = stored{state: next, head: string(sealedHead), version: now.version + 1, snapshot: now.snapshot, chunks: now.chunks}
	e.install(l)
	return l, true, nil
}

// happened looks whether a write without an answer was made.
func (e *engine) happened(ctx context.Context, d *delta) bool {
	ctx, cancel := context.WithTimeout(ctx, longestLook)
	defer cancel()
	found, err := e.watch.store.Get(ctx, kindConfig, changeID(d.Number))
	if err != nil || len(found) == 0 {
		return false
	}
	var there delta
	return e.keys.openConfig(&found[0], &there) == nil && there.ID == d.ID
}

// spread returns when the change holds on all nodes. Each goes by what it saw for less than a lease, unless all are
// here, and know at once.
func (e *engine) spread(ctx context.Context, l *look) error {
	if e.watch.moved != nil {
		e.compact(ctx, l)
		_, _ = e.lookAgain(ctx) // so that no other call has to
		return nil
	}
	over := time.NewTimer(lease)
	defer over.Stop()
	e.compact(ctx, l)
	select {
	case <-over.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("grant: change %d is made, and holds on all nodes within %v, which was not waited for: %w", l.state.Number, lease, ctx.Err())
	}
}

// How the configuration lies in the store: all in one aggregate, all sealed with a key that never changes, so that who
// can only read or write there neither learns a secret nor widens what an app may do.
const (
	kindConfig      = "config"
	configAggregate = "config"
	headID          = configAggregate + ".head"
	// compactAfter changes, a snapshot takes their place.
	compactAfter = 64
	// chunkSize is how much of a snapshot one record holds, before it is sealed.
	chunkSize = 512 << 10
	// keepGone is longer than anything lives that was granted before a removal: a pending day, a code's hour, a token's week.
	keepGone = pendingFor + maxRedeemWithin + maxLife + 23*time.Hour
)

// changeID sorts as the numbers do.
func changeID(number uint64) string {
	return string(appendBase32([]byte(configAggregate+".c"), number, 13))
}

func chunkID(snapshot uint64, i int) string {
	return fmt.Sprintf("%s-%06d", appendBase32([]byte(configAggregate+".s"), snapshot, 13), i)
}

// headData says what there is: the changes after the snapshot, up to the number.
type headData struct {
	Number   uint64 `json:"number"`
	ID       string `json:"id"` // of the last change, random: a store that was set back and went another way is told apart
	Snapshot uint64 `json:"snapshot,omitempty"`
	Chunks   int    `json:"chunks,omitempty"`
}

// A delta is a change as it lies in the store: worked out, so that every node makes the same of it.
type delta struct {
	Number          uint64          `json:"number"`
	ID              string          `json:"id"`
	After           string          `json:"after,omitempty"` // the ID of the change before
	At              int64           `json:"at"`
	By              string          `json:"by,omitempty"`
	Apps            []appData       `json:"apps,omitempty"`
	Triggers        []Trigger       `json:"triggers,omitempty"`
	RemoveApps      []removal       `json:"remove_apps,omitempty"`
	RemoveTriggers  []removal       `json:"remove_triggers,omitempty"`
	SuspendApps     map[string]bool `json:"suspend_apps,omitempty"` // or false: resume
	SuspendTriggers map[string]bool `json:"suspend_triggers,omitempty"`
}

type removal struct {
	ID     string `json:"id"`
	Config bool   `json:"config,omitempty"` // it is in Config, and would be back without the memory of its end
}

type appData struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Actions   []string          `json:"actions,omitempty"`
	Deliver   Delivery          `json:"deliver,omitempty"`
	RealNames bool              `json:"real_names,omitempty"`
	Private   map[string]string `json:"private,omitempty"`
	Since     int64             `json:"since,omitempty"`
}

func (a *App) data() appData {
	data := appData{ID: a.ID, Name: a.Name, Actions: a.Actions, Deliver: a.Deliver, RealNames: a.RealNames}
	for name, secret := range a.Private {
		if data.Private == nil {
			data.Private = map[string]string{}
		}
		data.Private[name] = secret.Reveal()
	}
	return data
}

// storable is what does not change on its way through JSON.
func (a *App) storable() bool {
	for name, secret := range a.Private {
		if !utf8.ValidString(name) || !utf8.ValidString(secret.Reveal()) {
			return false
		}
	}
	return utf8.ValidString(a.ID + a.Name + strings.Join(a.Actions, "") + string(a.Deliver))
}

// equal is but for Suspended.
func (a *App) equal(b *App) bool {
	return a.ID == b.ID && a.Name == b.Name && slices.Equal(a.Actions, b.Actions) && a.Deliver == b.Deliver && a.RealNames == b.RealNames &&
		maps.EqualFunc(a.Private, b.Private, func(x, y Secret) bool { return x.Reveal() == y.Reveal() })
}

func (a *appData) app() App {
	out := App{ID: a.ID, Name: a.Name, Actions: a.Actions, Deliver: a.Deliver, RealNames: a.RealNames}
	for name, text := range a.Private {
		if out.Private == nil {
			out.Private = map[string]Secret{}
		}
		out.Private[name] = NewSecret(text)
	}
	return out
}

// An overlay is what all changes up to a number come to. It is never changed.
type overlay struct {
	Number            uint64              `json:"number"`
	ID                string              `json:"id"`
	Apps              map[string]*appData `json:"apps,omitempty"`
	Triggers          map[string]Trigger  `json:"triggers,omitempty"`
	GoneApps          map[string]end      `json:"gone_apps,omitempty"`
	GoneTriggers      map[string]end      `json:"gone_triggers,omitempty"`
	SuspendedApps     map[string]bool     `json:"suspended_apps,omitempty"`
	SuspendedTriggers map[string]bool     `json:"suspended_triggers,omitempty"`
}

type end struct {
	At     int64 `json:"at"`
	Config bool  `json:"config,omitempty"`
}

// difference is what has become of the configuration that is there. What comes of it is not checked yet.
func (e *engine) difference(o *overlay, apps []registered, triggers []Trigger, edited *Config, by string) (*delta, error) {
	at := e.now().UnixMicro()
	d := &delta{Number: o.Number + 1, ID: rand.Text(), After: o.ID, At: at, By: by, SuspendApps: map[string]bool{}, SuspendTriggers: map[string]bool{}}
	var faults []error
	if len(by) > maxID || !utf8.ValidString(by) {
		faults = append(faults, invalid("who makes the change has %d bytes, want UTF-8 of at most %d", len(by), maxID))
	}
	there := map[string]bool{}
	before := make(map[string]*registered, len(apps))
	for i := range apps {
		before[apps[i].ID] = &apps[i]
	}
	for _, a := range edited.Apps {
		if there[a.ID] {
			faults = append(faults, invalid("app %.80q is there twice", a.ID))
		}
		there[a.ID] = true
		old := before[a.ID]
		if old == nil || old.Suspended != a.Suspended {
			d.SuspendApps[a.ID] = a.Suspended
		}
		if a = a.copied(); old != nil && a.equal(&old.App) {
			continue
		}
		if !a.storable() {
			faults = append(faults, invalid("app %.80q is not UTF-8", a.ID))
		}
		data := a.data()
		if old != nil {
			data.Since = old.since
		} else if _, gone := o.GoneApps[a.ID]; gone {
			data.Since = at
		}
		d.Apps = append(d.Apps, data)
	}
	for _, a := range apps {
		if !there[a.ID] {
			d.RemoveApps = append(d.RemoveApps, removal{a.ID, slices.ContainsFunc(e.baseApps, func(b App) bool { return a.ID == b.ID })})
		}
	}
	clear(there)
	was := make(map[string]*Trigger, len(triggers))
	for i := range triggers {
		was[triggers[i].ID] = &triggers[i]
	}
	for _, t := range edited.Triggers {
		t = t.named().copied()
		if there[t.ID] {
			faults = append(faults, invalid("trigger %.80q is there twice: give them IDs", t.ID))
		}
		there[t.ID] = true
		old := was[t.ID]
		if old == nil || old.Suspended != t.Suspended {
			d.SuspendTriggers[t.ID] = t.Suspended
		}
		if t.Suspended = old != nil && old.Suspended; old != nil && reflect.DeepEqual(t, *old) {
			continue
		}
		if t.Suspended = false; !t.storable() {
			faults = append(faults, invalid("trigger %.80q is not UTF-8", t.ID))
		}
		d.Triggers = append(d.Triggers, t)
	}
	for _, t := range triggers {
		if !there[t.ID] {
			if t.Suspended { // and so is still what it has granted
				d.SuspendTriggers[t.ID] = true
			}
			d.RemoveTriggers = append(d.RemoveTriggers, removal{t.ID, slices.ContainsFunc(e.baseTriggers, func(b Trigger) bool { return t.ID == b.ID })})
		}
	}
	return d, errors.Join(faults...)
}

// with is what the next change makes of it.
func (o *overlay) with(d *delta) *overlay {
	n := &overlay{Number: d.Number, ID: d.ID, Apps: cloned(o.Apps), Triggers: cloned(o.Triggers), GoneApps: cloned(o.GoneApps),
		GoneTriggers: cloned(o.GoneTriggers), SuspendedApps: cloned(o.SuspendedApps), SuspendedTriggers: cloned(o.SuspendedTriggers)}
	for _, r := range d.RemoveApps {
		delete(n.Apps, r.ID)
		n.GoneApps[r.ID] = end{d.At, r.Config}
	}
	for _, r := range d.RemoveTriggers {
		delete(n.Triggers, r.ID)
		n.GoneTriggers[r.ID] = end{d.At, r.Config}
	}
	for i := range d.Apps {
		delete(n.GoneApps, d.Apps[i].ID)
		n.Apps[d.Apps[i].ID] = &d.Apps[i]
	}
	for _, t := range d.Triggers {
		delete(n.GoneTriggers, t.ID)
		n.Triggers[t.ID] = t
	}
	maps.Copy(n.SuspendedApps, d.SuspendApps)
	maps.Copy(n.SuspendedTriggers, d.SuspendTriggers)
	return n
}

func cloned[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

// pruned forgets ends that nobody can notice any more: all that was granted before has expired, and no Config brings
// back what ended.
func (o *overlay) pruned(now int64) *overlay {
	n := o.with(&delta{Number: o.Number, ID: o.ID})
	for _, in := range []struct {
		gone      map[string]end
		suspended map[string]bool
	}{{n.GoneApps, n.SuspendedApps}, {n.GoneTriggers, n.SuspendedTriggers}} {
		for id, e := range in.gone {
			if !e.Config && now-e.At > keepGone.Microseconds() {
				delete(in.gone, id)
				delete(in.suspended, id)
			}
		}
	}
	return n
}

// stored is what a node has read of the store.
type stored struct {
	state    *overlay
	head     string // as it lies there; empty: there is none
	version  uint64 // of the head
	snapshot uint64 // the number of the last one
	chunks   int    // of which it has so many
}

// fetch reads what is new since last: nothing, as a rule, with one Get.
func (e *engine) fetch(ctx context.Context, last stored) (stored, error) {
	fail := func(err error) (stored, error) { return stored{}, fmt.Errorf("grant: the configuration: %w", err) }
	for range maxTurns { // each because another has written meanwhile
		found, err := e.watch.store.Get(ctx, kindConfig, headID, changeID(last.state.Number+1))
		if err != nil {
			return fail(err)
		}
		if len(found) == 0 || found[0].ID != headID {
			if last.head == "" {
				return last, nil
			}
			return stored{state: new(overlay)}, nil // a store that was emptied
		}
		if string(found[0].Data) == last.head {
			return last, nil
		}
		var head headData
		if err := e.keys.openConfig(&found[0], &head); err != nil {
			return fail(err)
		}
		now := stored{head: string(found[0].Data), version: found[0].Version, snapshot: head.Snapshot, chunks: head.Chunks, state: last.state}
		changes := found[1:]
		switch {
		case head.Number < last.state.Number || last.state.Number < head.Snapshot:
			now.state = nil
		case head.Number != last.state.Number+1 || len(changes) != 1:
			if changes, err = e.changes(ctx, last.state.Number, head.Number); err != nil {
				return fail(err)
			}
		}
		if now.state != nil {
			if now.state, err = e.apply(now.state, changes); err != nil {
				return fail(err)
			}
		}
		if now.state == nil || now.state.ID != head.ID { // too far behind, or it went another way
			if now.state, err = e.snapshot(ctx, &head); err != nil {
				return fail(err)
			}
			if now.state != nil {
				if changes, err = e.changes(ctx, head.Snapshot, head.Number); err != nil {
					return fail(err)
				}
				if now.state, err = e.apply(now.state, changes); err != nil {
					return fail(err)
				}
			}
		}
		if now.state != nil && now.state.ID == head.ID {
			return now, nil
		}
		// Somebody is replacing what the head named, or it is damaged.
		again, err := e.watch.store.Get(ctx, kindConfig, headID)
		if err != nil {
			return fail(err)
		}
		if len(again) == 1 && string(again[0].Data) == now.head {
			return fail(fmt.Errorf("record %s %s names changes that are not there", kindConfig, headID))
		}
	}
	return fail(errors.New("it changes faster than it can be read"))
}

// changes reads those after a number, up to another.
func (e *engine) changes(ctx context.Context, after, upTo uint64) ([]store.Record, error) {
	var out []store.Record
	for n := after; n < upTo; {
		var ids []string
		for ; n < upTo && len(ids) < compactAfter; n++ {
			ids = append(ids, changeID(n+1))
		}
		found, err := e.watch.store.Get(ctx, kindConfig, ids...)
		if err != nil || len(found) < len(ids) {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// apply returns nil if the changes do not follow upon one another.
func (e *engine) apply(o *overlay, changes []store.Record) (*overlay, error) {
	for i := range changes {
		var d delta
		if err := e.keys.openConfig(&changes[i], &d); err != nil {
			return nil, err
		}
		if d.After != o.ID || d.Number != o.Number+1 {
			return nil, nil
		}
		o = o.with(&d)
	}
	return o, nil
}

// snapshot returns nil if it is not whole, because another takes its place.
func (e *engine) snapshot(ctx context.Context, head *headData) (*overlay, error) {
	o := new(overlay)
	if head.Snapshot == 0 {
		return o, nil
	}
	var text []byte
	for i := range head.Chunks {
		found, err := e.watch.store.Get(ctx, kindConfig, chunkID(head.Snapshot, i))
		if err != nil || len(found) == 0 {
			return nil, err
		}
		var part []byte
		if err := e.keys.openConfig(&found[0], &part); err != nil {
			return nil, err
		}
		text = append(text, part...)
	}
	if err := json.Unmarshal(text, o); err != nil {
		return nil, fmt.Errorf("record %s %s: %w", kindConfig, chunkID(head.Snapshot, 0), err)
	}
	return o, nil
}

// compact puts a snapshot in the place of the changes, when there are many, so that a node that starts need not read
// all that ever was. The change before it is made, so its errors are nobody's: the next change tries again.
func (e *engine) compact(ctx context.Context, l *look) {
	if l.state.Number-l.snapshot < compactAfter {
		return
	}
	now := e.now()
	text, err := json.Marshal(l.state.pruned(now.UnixMicro()))
	if err != nil {
		return
	}
	apply := func(ops ...store.Op) bool {
		out, err := e.watch.store.Apply(ctx, now, ops)
		return err == nil && out.Applied()
	}
	head := headData{Number: l.state.Number, ID: l.state.ID, Snapshot: l.state.Number}
	for part := range slices.Chunk(text, chunkSize) {
		id := chunkID(head.Snapshot, head.Chunks)
		data, err := e.keys.sealConfig(id, part)
		if err != nil || !apply(store.Put(store.Record{Kind: kindConfig, ID: id, Version: store.AnyVersion, Data: data})) {
			return
		}
		head.Chunks++
	}
	data, err := e.keys.sealConfig(headID, head)
	if err != nil || !apply(store.Put(store.Record{Kind: kindConfig, ID: headID, Version: l.version, Data: data})) {
		return
	}
	// What only earlier heads named.
	q := store.Query{Kind: kindConfig, Prefix: configAggregate + ".", Limit: 100}
	for {
		page, err := e.watch.store.List(ctx, q)
		if err != nil {
			return
		}
		var ops []store.Op
		for _, r := range page {
			if q.After = r.ID; r.ID <= changeID(head.Snapshot) || strings.HasPrefix(r.ID, configAggregate+".s") && r.ID < chunkID(head.Snapshot, 0) {
				ops = append(ops, store.Delete(kindConfig, r.ID, store.AnyVersion))
			}
		}
		for some := range slices.Chunk(ops, store.MaxBatch) {
			if !apply(some...) {
				return
			}
		}
		if len(page) < q.Limit {
			return
		}
	}
}
