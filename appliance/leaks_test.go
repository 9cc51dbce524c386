package appliance

import (
	"testing"

	"go.uber.org/zap"

	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
)

// TestExpectedPods: what the cluster still has on this node keeps its addresses while its sandbox is away.
func TestExpectedPods(t *testing.T) {
	ref := model.PodRef{Namespace: "shop", Name: "web", UID: "1"}
	for _, tc := range []struct {
		name string
		pod  *model.Pod
		want bool
	}{
		{"it is here", &model.Pod{PodRef: ref, Node: "a"}, true},
		{"it is gone", nil, false},
		{"another one of its name", &model.Pod{PodRef: model.PodRef{Namespace: "shop", Name: "web", UID: "2"}, Node: "a"}, false},
		{"it is elsewhere", &model.Pod{PodRef: ref, Node: "b"}, false},
		{"it has ended", &model.Pod{PodRef: ref, Node: "a", Completed: true}, false},
	} {
		d := &Daemon{cfg: config.Config{NodeName: "a"}, log: zap.NewNop()}
		s := &model.Snapshot{Pods: map[model.PodKey]*model.Pod{}}
		if tc.pod != nil {
			s.Pods[tc.pod.Key()] = tc.pod
		}
		d.newest.Set(s)
		if got := d.expects(ref); got != tc.want {
			t.Errorf("%s: expected %v, want %v", tc.name, got, tc.want)
		}
	}
}
