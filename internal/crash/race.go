//go:build race

package crash

const slow = true
