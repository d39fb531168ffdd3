//! The hundred emoji, written once: the list, the gRPC methods and the calls are all made from this table.

use crate::proto::Emoji;

/// Hands the table to the macro `$then`: the method of `VotingService`, the shortcode and the character of each.
macro_rules! with_emoji {
    ($then:ident) => {
        $then! {
            vote_joy ":joy:" "😂",
            vote_sunglasses ":sunglasses:" "😎",
            vote_relaxed ":relaxed:" "☺️",
            vote_doughnut ":doughnut:" "🍩",
            vote_stuck_out_tongue_winking_eye ":stuck_out_tongue_winking_eye:" "😜",
            vote_money_mouth_face ":money_mouth_face:" "🤑",
            vote_flushed ":flushed:" "😳",
            vote_mask ":mask:" "😷",
            vote_nerd_face ":nerd_face:" "🤓",
            vote_ghost ":ghost:" "👻",
            vote_skull_and_crossbones ":skull_and_crossbones:" "☠️",
            vote_heart_eyes_cat ":heart_eyes_cat:" "😻",
            vote_hear_no_evil ":hear_no_evil:" "🙉",
            vote_see_no_evil ":see_no_evil:" "🙈",
            vote_speak_no_evil ":speak_no_evil:" "🙊",
            vote_boy ":boy:" "👦",
            vote_girl ":girl:" "👧",
            vote_man ":man:" "👨",
            vote_woman ":woman:" "👩",
            vote_older_man ":older_man:" "👴",
            vote_policeman ":policeman:" "👮",
            vote_guardsman ":guardsman:" "💂",
            vote_construction_worker_man ":construction_worker_man:" "👷",
            vote_prince ":prince:" "🤴",
            vote_princess ":princess:" "👸",
            vote_man_in_tuxedo ":man_in_tuxedo:" "🤵",
            vote_bride_with_veil ":bride_with_veil:" "👰",
            vote_mrs_claus ":mrs_claus:" "🤶",
            vote_santa ":santa:" "🎅",
            vote_turkey ":turkey:" "🦃",
            vote_rabbit ":rabbit:" "🐰",
            vote_no_good_woman ":no_good_woman:" "🙅",
            vote_ok_woman ":ok_woman:" "🙆",
            vote_raising_hand_woman ":raising_hand_woman:" "🙋",
            vote_bowing_man ":bowing_man:" "🙇",
            vote_man_facepalming ":man_facepalming:" "🤦‍♂️",
            vote_woman_shrugging ":woman_shrugging:" "🤷",
            vote_massage_woman ":massage_woman:" "💆",
            vote_walking_man ":walking_man:" "🚶",
            vote_running_man ":running_man:" "🏃",
            vote_dancer ":dancer:" "💃",
            vote_man_dancing ":man_dancing:" "🕺",
            vote_dancing_women ":dancing_women:" "👯",
            vote_rainbow ":rainbow:" "🌈",
            vote_skier ":skier:" "⛷️",
            vote_golfing_man ":golfing_man:" "🏌️",
            vote_surfing_man ":surfing_man:" "🏄",
            vote_basketball_man ":basketball_man:" "⛹️",
            vote_biking_man ":biking_man:" "🚴",
            vote_point_up2 ":point_up_2:" "👆",
            vote_vulcan_salute ":vulcan_salute:" "🖖",
            vote_metal ":metal:" "🤘",
            vote_call_me_hand ":call_me_hand:" "🤙",
            vote_thumbsup ":thumbsup:" "👍",
            vote_wave ":wave:" "👋",
            vote_clap ":clap:" "👏",
            vote_raised_hands ":raised_hands:" "🙌",
            vote_pray ":pray:" "🙏",
            vote_dog ":dog:" "🐶",
            vote_cat2 ":cat2:" "🐈",
            vote_pig ":pig:" "🐷",
            vote_hatching_chick ":hatching_chick:" "🐣",
            vote_snail ":snail:" "🐌",
            vote_bacon ":bacon:" "🥓",
            vote_pizza ":pizza:" "🍕",
            vote_taco ":taco:" "🌮",
            vote_burrito ":burrito:" "🌯",
            vote_ramen ":ramen:" "🍜",
            vote_champagne ":champagne:" "🍾",
            vote_tropical_drink ":tropical_drink:" "🍹",
            vote_beer ":beer:" "🍺",
            vote_tumbler_glass ":tumbler_glass:" "🥃",
            vote_world_map ":world_map:" "🗺️",
            vote_beach_umbrella ":beach_umbrella:" "🏖️",
            vote_mountain_snow ":mountain_snow:" "🏔️",
            vote_camping ":camping:" "🏕️",
            vote_steam_locomotive ":steam_locomotive:" "🚂",
            vote_flight_departure ":flight_departure:" "🛫",
            vote_rocket ":rocket:" "🚀",
            vote_star2 ":star2:" "🌟",
            vote_sun_behind_small_cloud ":sun_behind_small_cloud:" "🌤️",
            vote_cloud_with_rain ":cloud_with_rain:" "🌧️",
            vote_fire ":fire:" "🔥",
            vote_jack_o_lantern ":jack_o_lantern:" "🎃",
            vote_balloon ":balloon:" "🎈",
            vote_tada ":tada:" "🎉",
            vote_trophy ":trophy:" "🏆",
            vote_iphone ":iphone:" "📱",
            vote_pager ":pager:" "📟",
            vote_fax ":fax:" "📠",
            vote_bulb ":bulb:" "💡",
            vote_money_with_wings ":money_with_wings:" "💸",
            vote_crystal_ball ":crystal_ball:" "🔮",
            vote_underage ":underage:" "🔞",
            vote_interrobang ":interrobang:" "⁉️",
            vote100 ":100:" "💯",
            vote_checkered_flag ":checkered_flag:" "🏁",
            vote_crossed_swords ":crossed_swords:" "⚔️",
            vote_floppy_disk ":floppy_disk:" "💾",
            vote_poop ":poop:" "💩",
        }
    };
}
pub(crate) use with_emoji;

macro_rules! table {
    ($($method:ident $shortcode:literal $unicode:literal,)*) => {
        /// Shortcode and character of each, in the order of the page.
        const EMOJI: &[(&str, &str)] = &[$(($shortcode, $unicode)),*];
    };
}
with_emoji!(table);

/// The one that nobody gets to vote for.
pub const DOUGHNUT: &str = ":doughnut:";

fn emoji((shortcode, unicode): &(&str, &str)) -> Emoji {
    Emoji { unicode: (*unicode).to_owned(), shortcode: (*shortcode).to_owned() }
}

/// All of them, in the order of the page.
pub fn list() -> Vec<Emoji> {
    EMOJI.iter().map(emoji).collect()
}

/// The one with this shortcode, such as `:joy:`.
pub fn find(shortcode: &str) -> Option<Emoji> {
    EMOJI.iter().find(|(code, _)| *code == shortcode).map(emoji)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_a_hundred_and_no_two_share_a_name_or_a_character() {
        let all = list();
        assert_eq!(all.len(), 100);
        assert_eq!(all.iter().map(|e| &e.shortcode).collect::<BTreeSet<_>>().len(), 100);
        assert_eq!(all.iter().map(|e| &e.unicode).collect::<BTreeSet<_>>().len(), 100);
    }

    #[test]
    fn an_emoji_is_found_by_its_shortcode_with_colons() {
        assert_eq!(find(":joy:").map(|e| e.unicode).as_deref(), Some("😂"));
        assert_eq!(find(DOUGHNUT).map(|e| e.unicode).as_deref(), Some("🍩"));
        assert_eq!(find("joy"), None);
    }
}
