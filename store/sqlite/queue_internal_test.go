package sqlite

import (
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// The writer is woken once: when there are as many as it waits for, whether they come before it asks or after.
func TestQueueWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		woken := func() bool {
			select {
			case <-q.wake:
				return true
			default:
				return false
			}
		}
		var all [5]request
		require.True(t, q.add(&all[0]))
		require.False(t, woken(), "nobody asked")
		<-q.when(1)
		q.when(3)
		require.True(t, q.add(&all[1]))
		require.False(t, woken())
		require.True(t, q.add(&all[2]))
		require.True(t, q.add(&all[3]))
		require.True(t, woken())
		require.False(t, woken(), "twice")
		require.Equal(t, []*request{&all[0], &all[1], &all[2]}, q.take(3))
		q.when(1) // is there
		q.when(2) // is not
		require.False(t, woken(), "it was about another wait")
		asked := make(chan struct{})
		go func() {
			<-q.wake
			close(asked)
		}()
		synctest.Wait()
		require.True(t, q.add(&all[4]))
		<-asked
		require.Equal(t, []*request{&all[3], &all[4]}, q.take(9))
		require.Empty(t, q.take(9))
	})
}

// Whoever is let in is answered, also when the writer goes at that moment; who has given up is not kept.
func TestQueueEnds(t *testing.T) {
	q := newQueue()
	var first, second request
	q.add(&first)
	q.add(&second)
	q.remove(&first)
	q.remove(&first)
	require.Equal(t, []*request{&second}, q.take(9))

	const callers = 64
	var all sync.WaitGroup
	in := make(chan *request, callers)
	for range callers {
		all.Go(func() {
			if r := new(request); q.add(r) {
				in <- r
			}
		})
	}
	left := q.close()
	all.Wait()
	close(in)
	var let []*request
	for r := range in {
		let = append(let, r)
	}
	require.ElementsMatch(t, let, left)
	require.False(t, q.add(&first))
	require.Empty(t, q.close())
}
