// csi-sanity against `secretfs node`: every Identity and Node test that applies to a node-only driver of ephemeral volumes.
//
// csi-sanity takes its volumes from a Controller, which such a driver does not have: the kubelet makes them up (volume id, context, target).
// So a controller of the test's own (shim_test.go) makes them as the kubelet does, and an interceptor adds `readonly`, which csi-sanity never
// sets. Nothing else stands between csi-sanity and the plugin.
//
// The plugin is running already: `run` starts it and says where it is.
package sanity

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
)

// The number of lines of skipped.txt. It may shrink; who makes it grow says why here.
const skippedAtMost = 13

// The tests of both services that apply: fewer means that the focus found too little.
const passedAtLeast = 17

func TestSanity(t *testing.T) {
	skipped := readSkipped(t)
	if len(skipped) > skippedAtMost {
		t.Fatalf("skipped.txt has %d tests; %d is the most", len(skipped), skippedAtMost)
	}
	pod := newPod(environment(t, "SANITY_KUBELET_DIR"), environment(t, "SANITY_SPEC"))
	config := sanity.NewTestConfig()
	config.Address = "unix://" + environment(t, "SANITY_ENDPOINT")
	config.ControllerAddress = "unix://" + pod.serve(t)
	config.TargetPath = pod.volumeDir
	config.CreateTargetDir = func(path string) (string, error) { return path, os.MkdirAll(path, 0o750) }
	config.RemoveTargetPath = os.Remove
	config.CheckPath = pathKind
	config.StagingPath = t.TempDir() + "/staging"
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(pod.asKubelet))

	sanity.GinkgoTest(&config)
	var report ginkgo.Report
	ginkgo.ReportAfterSuite("what ran", func(r ginkgo.Report) { report = r })
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	suite.FocusStrings = []string{"Identity Service", "Node Service"}
	reporter.Succinct, reporter.NoColor = true, true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
	compare(t, report, skipped)
}

// Every test of the two services has passed, or is skipped and stands in skipped.txt.
func compare(t *testing.T, report ginkgo.Report, skipped map[string]string) {
	passed := 0
	for _, spec := range report.SpecReports {
		name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
		if !strings.HasPrefix(name, "Identity Service") && !strings.HasPrefix(name, "Node Service") {
			continue
		}
		reason, listed := skipped[name]
		delete(skipped, name)
		switch {
		case spec.State == types.SpecStatePassed && !listed:
			passed++
			fmt.Println("ok      ", name)
		case spec.State == types.SpecStateSkipped && listed:
			fmt.Printf("skipped  %s (%s)\n", name, reason)
		case spec.State == types.SpecStatePassed:
			t.Errorf("%q passes now: take it out of skipped.txt", name)
		case spec.State == types.SpecStateSkipped:
			t.Errorf("%q was skipped and does not stand in skipped.txt: %s", name, spec.Failure.Message)
		default:
			t.Errorf("%q: %v: %s", name, spec.State, spec.Failure.Message)
		}
	}
	for name := range skipped {
		t.Errorf("skipped.txt names %q, and there is no such test", name)
	}
	if passed < passedAtLeast {
		t.Errorf("%d tests passed; there are at least %d", passed, passedAtLeast)
	}
	// counted by tests/run
	fmt.Printf("test result: %d passed; 0 failed\n", passed)
}

// Lines of `NAME: REASON`.
func readSkipped(t *testing.T) map[string]string {
	file, err := os.Open("skipped.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	skipped := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, found := strings.Cut(line, ": ")
		if !found || reason == "" {
			t.Fatalf("skipped.txt: no reason: %q", line)
		}
		skipped[name] = reason
	}
	return skipped
}

func environment(t *testing.T, name string) string {
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: start this with `run`", name)
	}
	return value
}
