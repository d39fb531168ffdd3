//! The emoji service: knows the hundred emoji and finds one by its shortcode.

use crate::catalogue;
use crate::proto::emoji_service_server::EmojiService;
use crate::proto::{
    FindByShortcodeRequest, FindByShortcodeResponse, ListAllEmojiRequest, ListAllEmojiResponse,
};
use tonic::{Request, Response, Status};

/// The service; it keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Emojis;

#[tonic::async_trait]
impl EmojiService for Emojis {
    async fn list_all(
        &self,
        _: Request<ListAllEmojiRequest>,
    ) -> Result<Response<ListAllEmojiResponse>, Status> {
        Ok(Response::new(ListAllEmojiResponse { list: catalogue::list() }))
    }

    async fn find_by_shortcode(
        &self,
        request: Request<FindByShortcodeRequest>,
    ) -> Result<Response<FindByShortcodeResponse>, Status> {
        let emoji = catalogue::find(&request.into_inner().shortcode);
        Ok(Response::new(FindByShortcodeResponse { emoji }))
    }
}
