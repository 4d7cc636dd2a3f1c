package goauth2_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// The package comment lists the holes, and each has its test.
func TestEveryHoleHasATest(t *testing.T) {
	find := func(file, pattern string) (names []string) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
		slices.Sort(names)
		return names
	}
	listed := find("doc.go", `(?m)^//\t(TestHole\w+) `)
	require.NotEmpty(t, listed)
	require.Equal(t, find("holes_test.go", `(?m)^func (TestHole\w+)\(`), listed)
}
